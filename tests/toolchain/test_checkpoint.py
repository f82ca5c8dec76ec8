"""Checkpoints that cannot be exported are refused before anything is built, with a reason and a hint."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ssruntime.errors import CheckpointError, SelfSpecError, UnsupportedModelError
from sstool.checkpoint.attention_pattern import EVERY_LAYER, rope_parameters
from sstool.checkpoint.describe import check_weights, describe_checkpoint
from sstool.checkpoint.own_head import has_own_head
from sstool.checkpoint.safetensors_files import check_finite, read_tensors
from tests.toolchain.tiny_llama import LAYERS, VOCAB, YARN, edit_json, rewrite_weights, shard


def test_a_valid_checkpoint_is_described(tiny_model: Path) -> None:
    found = describe_checkpoint(tiny_model)
    assert (found.model_type, found.architecture) == ("llama", "LlamaForCausalLM")
    assert (found.num_layers, found.hidden_size, found.num_heads, found.kv_heads, found.head_dim) == (LAYERS, 64, 4, 2, 16)
    assert (found.vocab_size, found.max_context, found.original_context) == (VOCAB, 256, 256)
    assert found.num_parameters == sum(a.size for a in load_file(tiny_model / "model.safetensors").values())
    assert found.weight_bytes == 4 * found.num_parameters
    check_weights(found)


def test_sharded_weights_are_read(tiny_copy: Path) -> None:
    whole = describe_checkpoint(tiny_copy)
    shard(tiny_copy)
    assert describe_checkpoint(tiny_copy).num_parameters == whole.num_parameters


def test_older_configs_are_read(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "config.json", rope_parameters=None, head_dim=None, num_key_value_heads=None)
    edit_json(tiny_copy / "config.json", rope_scaling={"type": "linear", "factor": 2.0})
    found = describe_checkpoint(tiny_copy)
    assert rope_parameters(found.config)[EVERY_LAYER]["rope_type"] == "linear"
    assert (found.head_dim, found.kv_heads) == (16, 4)


def test_the_original_context_of_scaled_rope_is_known(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "config.json", rope_parameters=YARN)
    assert describe_checkpoint(tiny_copy).original_context == 64


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return change


def config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def remove_a_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def index_names_more(folder: Path) -> None:
    """Takes away a tensor that the index lists."""
    shard(folder)
    for path in folder.glob("model-*.safetensors"):
        tensors = dict(load_file(path))
        tensors.pop("model.norm.weight", None)
        save_file(tensors, path)


def index_names_a_file_outside(folder: Path) -> None:
    shard(folder)
    edit_json(folder / "model.safetensors.index.json", weight_map={"x": "../elsewhere.safetensors"})


def damage_the_index(folder: Path) -> None:
    shard(folder)
    cut("model.safetensors.index.json", 0.5)(folder)


def deep_index(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text("[" * 200_000)


def a_tensor_twice(folder: Path) -> None:
    shard(folder)
    second = dict(load_file(folder / "model-00002-of-00002.safetensors"))
    second["model.embed_tokens.weight"] = np.zeros((VOCAB, 64), dtype=np.float32)
    save_file(second, folder / "model-00002-of-00002.safetensors")


def header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Returns a function that changes the header of the weights and nothing else."""

    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length])
        change(entries)
        text = json.dumps(entries).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return rewrite


def append(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + data) and None


def integers(folder: Path) -> None:
    rewrite_weights(folder, lambda t: t.update({"model.norm.weight": np.ones(64, dtype=np.int8)}))


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


BAD: dict[str, tuple[Callable[[Path], None], type[SelfSpecError], str]] = {
    "empty": (empty, CheckpointError, "is empty"),
    "no config": (remove("config.json"), CheckpointError, "is a tokenizer without a model"),
    "an artifact": (lambda f: (f / "config.json").rename(f / "manifest.json") and None, CheckpointError, "is an artifact"),
    "cut config": (cut("config.json", 0.5), CheckpointError, "config.json cannot be read"),
    "config is a list": (write("config.json", "[]"), CheckpointError, "does not hold a JSON object"),
    "deep config": (write("config.json", "[" * 200_000), CheckpointError, "config.json cannot be read"),
    "deep index": (deep_index, CheckpointError, "is not a weight index"),
    "no model type": (config(model_type=None), CheckpointError, "model_type is None"),
    "a count is a string": (config(num_hidden_layers="four"), CheckpointError, "num_hidden_layers must be a whole number"),
    "a count is missing": (config(hidden_size=None), CheckpointError, "hidden_size must be"),
    "a count is negative": (config(vocab_size=-1), CheckpointError, "vocab_size must be"),
    "encoder-decoder": (config(is_encoder_decoder=True), CheckpointError, "not a decoder"),
    "t5": (config(architectures=["T5ForConditionalGeneration"], model_type="t5"), CheckpointError, "T5ForConditionalGeneration"),
    "bert": (config(architectures=["BertModel"], model_type="bert"), CheckpointError, "not a decoder: its architecture is BertModel"),
    "classifier": (config(architectures=["LlamaForSequenceClassification"]), CheckpointError, "not a decoder"),
    "an unsupported family": (
        config(architectures=["FalconForCausalLM"], model_type="falcon"),
        UnsupportedModelError,
        "'falcon'.*not yet supported",
    ),
    "quantized": (config(quantization_config={"quant_method": "gptq"}), UnsupportedModelError, "is quantized"),
    "rope is a list": (config(rope_parameters=[1.0]), CheckpointError, "the rope parameters are not an object"),
    "an unsupported layer type": (config(layer_types=["linear_attention"] * 4), UnsupportedModelError, "linear_attention"),
    "narrow heads": (config(head_dim=8), UnsupportedModelError, "heads of 8"),
    "no tokenizer": (remove("tokenizer.json"), CheckpointError, "no tokenizer.json"),
    "cut tokenizer": (cut("tokenizer.json", 0.7), CheckpointError, "tokenizer.json is not a tokenizer"),
    "cut tokenizer config": (cut("tokenizer_config.json", 0.7), CheckpointError, "tokenizer_config.json cannot be read"),
    "cut generation config": (cut("generation_config.json", 0.7), CheckpointError, "generation_config.json cannot be read"),
    "no weights": (remove("model.safetensors"), CheckpointError, "has no weights"),
    "only a pickle": (only_a_pickle, CheckpointError, "only pytorch_model.bin"),
    "cut weights": (cut("model.safetensors", 0.9), CheckpointError, "bytes where its header says"),
    "cut in the header": (cut("model.safetensors", 0.001), CheckpointError, "is cut or not a safetensors file"),
    "empty weights": (write("model.safetensors", ""), CheckpointError, "is cut or not a safetensors file"),
    "weights are text": (write("model.safetensors", "not weights at all, but long enough to look"), CheckpointError, "safetensors file"),
    "weights are too long": (append("model.safetensors", b"more"), CheckpointError, "bytes where its header says"),
    "a shape does not fit its bytes": (
        header(lambda entries: entries["model.norm.weight"].update(shape=[65])),
        CheckpointError,
        "model.safetensors has a damaged header: invalid shape",
    ),
    "an unknown dtype": (
        header(lambda entries: entries["model.norm.weight"].update(dtype="F99")),
        CheckpointError,
        "has a damaged header: .*unknown variant `F99`",
    ),
    "tensors overlap": (
        header(lambda entries: entries.update({"a": next(e for name, e in entries.items() if name != "__metadata__")})),
        CheckpointError,
        "has a damaged header: invalid offset",
    ),
    "no tensors": (lambda folder: save_file({}, folder / "model.safetensors"), CheckpointError, "hold no tensors"),
    "a tensor is in two shards": (a_tensor_twice, CheckpointError, "'model.embed_tokens.weight' is in two weight files"),
    "integers": (integers, UnsupportedModelError, "'model.norm.weight' has dtype I8"),
    "a shard is missing": (remove_a_shard, CheckpointError, "model-00002-of-00002.safetensors is missing"),
    "the index names more": (index_names_more, CheckpointError, "lists tensor 'model.norm.weight'"),
    "the index names a file outside the folder": (index_names_a_file_outside, CheckpointError, "outside its folder"),
    "a damaged index": (damage_the_index, CheckpointError, "not a weight index"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints_are_refused(case: str, tiny_copy: Path) -> None:
    damage, error, message = BAD[case]
    damage(tiny_copy)
    with pytest.raises(error, match=message) as caught:
        describe_checkpoint(tiny_copy)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_damaged_header_is_refused(tiny_copy: Path) -> None:
    path = tiny_copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"!!!!"
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="damaged header"):
        describe_checkpoint(tiny_copy)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float, tiny_copy: Path) -> None:
    def poison(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"][3, 5] = bad

    rewrite_weights(tiny_copy, poison)
    with pytest.raises(CheckpointError, match=r"'model.layers.2.mlp.up_proj.weight'.* holds 1 numbers"):
        check_weights(describe_checkpoint(tiny_copy))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_is_found_in_every_numpy_float_dtype(dtype: type, tmp_path: Path) -> None:
    values = np.linspace(-60000, 60000, 100).astype(dtype)
    save_file({"a": values}, tmp_path / "model.safetensors")
    check_finite(read_tensors(tmp_path, set))
    values[7] = np.nan
    save_file({"a": values}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="'a'"):
        check_finite(read_tensors(tmp_path, set))


def test_nan_is_found_in_bfloat16(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.linspace(-1e38, 1e38, 100).to(torch.bfloat16)
    save_torch({"a": values}, tmp_path / "model.safetensors")
    check_finite(read_tensors(tmp_path, set))
    values[7] = torch.nan
    save_torch({"a": values}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="'a'"):
        check_finite(read_tensors(tmp_path, set))


def test_the_last_number_of_a_large_tensor_is_checked_and_an_empty_tensor_is_valid(tmp_path: Path) -> None:
    tensors = {"large": np.zeros((300, 301), dtype=np.float32), "empty": np.zeros((0, 4), dtype=np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    check_finite(read_tensors(tmp_path, set))
    tensors["large"][-1, -1] = np.inf
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'large' in .* holds 1 numbers"):
        check_finite(read_tensors(tmp_path, set))


def test_weights_truncated_after_they_were_described_are_refused(tiny_copy: Path) -> None:
    found = describe_checkpoint(tiny_copy)
    cut("model.safetensors", 0.9)(tiny_copy)
    with pytest.raises(CheckpointError, match="bytes where its header says"):
        check_weights(found)


# Tensors and files that the model does not use


def test_tensors_that_the_model_does_not_use_decide_nothing(tiny_copy: Path) -> None:
    before = describe_checkpoint(tiny_copy)

    def add(tensors: dict[str, np.ndarray]) -> None:
        tensors["v_head.summary.weight"] = np.full((1, 64), -np.inf, dtype=np.float32)
        tensors["model.layers.0.self_attn.bias"] = np.ones((1, 8, 8), dtype=np.bool_)
        tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.full(8, np.nan, dtype=np.float32)

    rewrite_weights(tiny_copy, add)
    found = describe_checkpoint(tiny_copy)
    check_weights(found)
    assert (found.num_parameters, len(found.tensors)) == (before.num_parameters, len(before.tensors))


def test_a_tensor_that_is_listed_but_neither_used_nor_there_decides_nothing(tiny_copy: Path) -> None:
    shard(tiny_copy)
    index = json.loads((tiny_copy / "model.safetensors.index.json").read_text())
    index["weight_map"]["value_head.weight"] = "model-00001-of-00002.safetensors"
    (tiny_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert describe_checkpoint(tiny_copy).tensors


def test_a_single_file_comes_before_an_index(tiny_copy: Path) -> None:
    whole = (tiny_copy / "model.safetensors").read_bytes()
    shard(tiny_copy)
    (tiny_copy / "model.safetensors").write_bytes(whole)
    assert {record.file.name for record in describe_checkpoint(tiny_copy).tensors} == {"model.safetensors"}


def test_an_untied_head_under_a_config_that_ties_it_is_noticed(tiny_copy: Path) -> None:
    assert not has_own_head(describe_checkpoint(tiny_copy))
    embeddings: dict[str, np.ndarray] = {}

    def same(tensors: dict[str, np.ndarray]) -> None:
        embeddings.update(tensors)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    rewrite_weights(tiny_copy, same)
    assert not has_own_head(describe_checkpoint(tiny_copy))
    rewrite_weights(tiny_copy, lambda tensors: tensors["lm_head.weight"].__setitem__((3, 5), 1.5))
    assert has_own_head(describe_checkpoint(tiny_copy))
    edit_json(tiny_copy / "config.json", tie_word_embeddings=False)
    assert not has_own_head(describe_checkpoint(tiny_copy))  # nothing is wrong with it


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_named_with_the_reason(tiny_copy: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = io.open

    def refuse(file: object, *args: Any, **options: Any) -> Any:
        if str(file).endswith(f"/{name}"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return real(file, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(io, "open", refuse)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read: Permission denied") as caught:
        describe_checkpoint(tiny_copy)
    assert "permissions" in (caught.value.hint or "")
