"""Writes a checkpoint as a GGUF file for llama.cpp, whose own converter takes known tokenizers only.

    python gguf_file.py CHECKPOINT FOLDER fp32|int8

It writes FOLDER/model.gguf. Runs in the environment of a peer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

_ARCHITECTURES: Final = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_NORMAL, _CONTROL, _UNUSED = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
_Q8: Final = gguf.GGMLQuantizationType.Q8_0


def main(model: Path, out: Path, dtype: str) -> None:
    """Writes the file."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    architecture = _ARCHITECTURES.get(config["model_type"])
    if architecture is None:
        sys.exit(f"a GGUF file can be written here of {', '.join(_ARCHITECTURES)}, not of {config['model_type']}")
    out.mkdir(parents=True)
    writer = gguf.GGUFWriter(out / "model.gguf", gguf.MODEL_ARCH_NAMES[architecture], use_temp_file=True)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if dtype == "int8" else gguf.LlamaFileType.ALL_F32)
    head = _add_shape(writer, config)
    _add_vocabulary(writer, model, config)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config.get("num_key_value_heads", config["num_attention_heads"])}
    for name, values in _tensors(model):
        if name.endswith("rotary_emb.inv_freq"):
            continue
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            sys.exit(f"llama.cpp has no place for the tensor {name}")
        count = heads.get(name.split(".")[-2], 0) if architecture == gguf.MODEL_ARCH.LLAMA else 0
        _add_tensor(writer, new, _with_pairs(values, count, head) if count else values, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, config: dict[str, Any]) -> int:
    """Writes the sizes of the model; returns the width of a head."""
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        sys.exit(f"RoPE that is scaled as {kind} is not converted here")
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        sys.exit("sliding windows are not converted here")
    heads = config["num_attention_heads"]
    head: int = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope["rope_theta"])
    return head


def _add_vocabulary(writer: Any, model: Path, config: dict[str, Any]) -> None:
    """Writes the texts of the tokens. How llama.cpp splits texts does not matter: prompts come as ids."""
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    size = config["vocab_size"]
    texts, kinds = [f"[unused {number}]" for number in range(size)], [_UNUSED] * size
    for text, number in tokenizer["model"]["vocab"].items():
        texts[number], kinds[number] = text, _NORMAL
    for token in tokenizer["added_tokens"]:
        texts[token["id"]], kinds[token["id"]] = token["content"], _CONTROL if token["special"] else _NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]])
    for name, write in (("bos_token_id", writer.add_bos_token_id), ("eos_token_id", writer.add_eos_token_id)):
        value = config.get(name)
        first = value[0] if isinstance(value, list) else value
        if first is not None:
            write(first)


def _tensors(model: Path) -> Iterator[tuple[str, Any]]:
    """Yields the names and the values in fp32 of all tensors."""
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                yield name, _fp32(file.read(end - begin), entry["dtype"]).reshape(entry["shape"])


def _fp32(data: bytes, dtype: str) -> Any:
    if dtype == "BF16":  # the upper half of fp32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    if dtype not in ("F16", "F32"):
        sys.exit(f"weights in {dtype} are not converted here")
    return np.frombuffer(data, f"<f{int(dtype[1:]) // 8}").astype("<f4")


def _with_pairs(values: Any, heads: int, head: int) -> Any:
    """Returns rows of queries or keys in llama.cpp's order: two that RoPE rotates are beside each other."""
    order = np.arange(heads * head).reshape(heads, 2, head // 2).transpose(0, 2, 1).ravel()
    return values[order]


def _add_tensor(writer: Any, name: str, values: Any, dtype: str) -> None:
    if dtype == "int8" and values.ndim > 1:  # as llama.cpp's own tool does
        writer.add_tensor(name, gguf.quants.quantize(values, _Q8), raw_dtype=_Q8)
    else:
        writer.add_tensor(name, np.ascontiguousarray(values))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
