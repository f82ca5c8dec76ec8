"""What a checkpoint folder holds, read without torch and refused with a reason where it cannot be exported."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from ssruntime.errors import CheckpointError, UnsupportedModelError
from sstool.safetensors_files import TensorRecord, check_dtypes, check_finite, read_tensors

SUPPORTED_FAMILIES: Final = frozenset({"llama"})
SUPPORTED_ROPE: Final = frozenset({"default", "linear", "llama3", "yarn"})
TOKENIZER: Final = "tokenizer.json"

_HEAD_DIM_STEP: Final = 16
_FP32_BYTES: Final = 4
_DEFAULT_CONTEXT: Final = 2048
"""What transformers takes for a Llama config that names none."""
_AGAIN: Final = "download the checkpoint again"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A decoder checkpoint on disk, whose files have been checked.

    Attributes:
        folder: where it lies.
        config: `config.json`.
        model_type: the family, for example `llama`.
        architecture: the class the weights belong to, for example `LlamaForCausalLM`.
        num_layers: decoder layers.
        hidden_size: width of the residual stream.
        num_heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a head.
        vocab_size: rows of the embedding.
        max_context: positions the model is made for.
        rope_type: how positions are scaled: default, linear, llama3 or yarn.
        original_context: positions before scaling; `max_context` where nothing is scaled.
        tensors: every tensor of the weight files.
        num_parameters: numbers in them.
        weight_bytes: their bytes in fp32.
    """

    folder: Path
    config: dict[str, Any]
    model_type: str
    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    rope_type: str
    original_context: int
    tensors: tuple[TensorRecord, ...]
    num_parameters: int
    weight_bytes: int


def describe(folder: Path) -> Checkpoint:
    """Reads and checks a checkpoint folder: its config, its tokenizer, and the headers of its weight files.

    Raises:
        CheckpointError: if a file is missing, cut or corrupt, or the model is not a decoder.
        UnsupportedModelError: if the model is sound, but not of a kind that is exported correctly.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no model folder at {folder}", "check the path, or name a hub id such as org/name")
    if not any(folder.iterdir()):
        raise CheckpointError(f"the model folder {folder} is empty", _AGAIN)
    config = _read_config(folder)
    model_type, architecture = _family(folder, config)
    rope_type, original = _rope(folder, config)
    tensors = tuple(read_tensors(folder))
    check_dtypes(tensors)
    _check_tokenizer(folder)
    num_heads = _count(folder, config, "num_attention_heads")
    hidden_size = _count(folder, config, "hidden_size")
    head_dim = _count(folder, config, "head_dim", default=hidden_size // num_heads)
    if head_dim % _HEAD_DIM_STEP:
        raise UnsupportedModelError(
            f"{folder} has heads of {head_dim}; the attention kernels take multiples of {_HEAD_DIM_STEP}",
            "pad the heads with zeros, which does not change the function",
        )
    max_context = _count(folder, config, "max_position_embeddings", default=_DEFAULT_CONTEXT)
    num_parameters = sum(t.num_elements for t in tensors)
    return Checkpoint(
        folder=folder,
        config=config,
        model_type=model_type,
        architecture=architecture,
        num_layers=_count(folder, config, "num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        kv_heads=_count(folder, config, "num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        vocab_size=_count(folder, config, "vocab_size"),
        max_context=max_context,
        rope_type=rope_type,
        original_context=original or max_context,
        tensors=tensors,
        num_parameters=num_parameters,
        weight_bytes=num_parameters * _FP32_BYTES,
    )


def check_weights(checkpoint: Checkpoint) -> None:
    """Reads every weight once and refuses NaN and infinity.

    Raises:
        CheckpointError: naming the tensor.
    """
    check_finite(checkpoint.tensors)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a checkpoint.

    Raises:
        CheckpointError: if the file cannot be read or holds anything else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise CheckpointError(f"{path} cannot be read: {err}", _AGAIN) from err
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold a JSON object", _AGAIN)
    return data


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        if (folder / "manifest.json").exists():
            raise CheckpointError(f"{folder} is an artifact, not a checkpoint", "name the model folder it was exported from")
        raise CheckpointError(f"{folder} holds no config.json, so it is not a model folder", "name the folder that holds config.json")
    return read_json(path)


def _family(folder: Path, config: dict[str, Any]) -> tuple[str, str]:
    model_type = config.get("model_type")
    architectures = config.get("architectures") or []
    if not isinstance(model_type, str) or not isinstance(architectures, list):
        raise CheckpointError(f"{folder / 'config.json'} does not say which model it is: model_type is {model_type!r}", _AGAIN)
    architecture = str(architectures[0]) if architectures else "unnamed"
    if config.get("is_encoder_decoder") or not architecture.endswith("ForCausalLM"):
        raise CheckpointError(
            f"{folder} is not a decoder: its architecture is {architecture}", "sstool exports models that end in ForCausalLM"
        )
    if model_type not in SUPPORTED_FAMILIES:
        raise UnsupportedModelError(
            f"{folder} is of the family {model_type!r}, which is not yet supported", f"supported: {', '.join(sorted(SUPPORTED_FAMILIES))}"
        )
    if config.get("quantization_config"):
        raise UnsupportedModelError(f"{folder} is quantized", "export the checkpoint before it was quantized")
    return model_type, architecture


def _rope(folder: Path, config: dict[str, Any]) -> tuple[str, int | None]:
    """Returns the kind of rope scaling, and the context before it where the config says."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{folder / 'config.json'}: the rope parameters are not an object", _AGAIN)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in SUPPORTED_ROPE:
        raise UnsupportedModelError(
            f"{folder} scales its positions with {kind!r}, which is not yet supported", f"supported: {', '.join(sorted(SUPPORTED_ROPE))}"
        )
    original = rope.get("original_max_position_embeddings")
    return str(kind), original if isinstance(original, int) and original > 0 else None


def _count(folder: Path, config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{folder / 'config.json'}: {key} must be a whole number of at least 1, found {value!r}", _AGAIN)
    return value


def _check_tokenizer(folder: Path) -> None:
    path = folder / TOKENIZER
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}", "convert its tokenizer: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        Tokenizer.from_file(str(path))
    except Exception as err:  # the library raises nothing narrower
        raise CheckpointError(f"{path} is not a tokenizer: {err}", _AGAIN) from err
    if (folder / "tokenizer_config.json").exists():
        read_json(folder / "tokenizer_config.json")
    if (folder / "generation_config.json").exists():
        read_json(folder / "generation_config.json")
