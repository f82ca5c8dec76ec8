"""Reads and checks a checkpoint folder, and refuses one that cannot be exported, with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from ssruntime.artifact import CHECKPOINT_CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from ssruntime.errors import CheckpointError, UnsupportedModelError
from ssruntime.strict_reader import read_json_object
from sstool.checkpoint.attention_pattern import LayerAttention, attention_pattern
from sstool.checkpoint.mistaken_folders import refuse_mistaken_folder
from sstool.checkpoint.packed.layout import packed_layout
from sstool.checkpoint.quiet import quiet
from sstool.checkpoint.rope import original_context, ropes
from sstool.checkpoint.safetensors_files import TensorRecord, check_dtypes, check_finite, read_tensors
from sstool.checkpoint.used_tensors import used_tensors
from sstool.checkpoint.variants import refuse_variant

SUPPORTED_FAMILIES: Final = frozenset(
    {
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "starcoder2",
    }
)
"""Families whose graphs the tests compare with transformers. Others may work, but no test shows it."""

_DTYPE_NAMES: Final = {"F16": "fp16", "BF16": "bf16"}
_HEAD_DIM_STEP: Final = 16
_FP32_BYTES: Final = 4
_COUNTS: Final = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
"""Settings that are checked before transformers reads them, because its own messages fill a page."""
_DECODERS: Final = ("ForCausalLM", "LMHeadModel")
_AGAIN: Final = "download the checkpoint again"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A decoder checkpoint on disk whose config, tokenizer and weight headers have been checked.

    Attributes:
        folder: folder of the checkpoint.
        settings: content of `config.json`.
        config: the config as transformers reads it, with the family's defaults filled in.
        model_type: model family, for example `llama`.
        architecture: model class that the weights belong to, for example `LlamaForCausalLM`.
        num_layers: number of decoder layers.
        hidden_size: width of the residual stream.
        num_heads: number of query heads in a layer.
        kv_heads: number of key and value heads in a layer.
        head_dim: width of one head.
        vocab_size: number of rows of the embedding.
        max_context: number of positions that the model supports.
        attention: sliding window and RoPE of each layer.
        original_context: number of positions before RoPE scaling; `max_context` for a model without scaling.
        tensors: records of the tensors that the model uses.
        num_parameters: number of parameters in these tensors.
        weight_bytes: size of all parameters in fp32, in bytes.
        dtype: data type of most parameters: `fp32`, `fp16` or `bf16`.
    """

    folder: Path
    settings: dict[str, Any]
    config: Any
    model_type: str
    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    attention: tuple[LayerAttention, ...]
    original_context: int
    tensors: tuple[TensorRecord, ...]
    num_parameters: int
    weight_bytes: int
    dtype: str


def describe_checkpoint(folder: Path) -> Checkpoint:
    """Returns a checkpoint after checking its config, its tokenizer and the headers of its weight files.

    Raises:
        CheckpointError: if a file is missing, truncated or corrupt, or the model is not a decoder.
        UnsupportedModelError: if the checkpoint is sound, but sstool cannot export it correctly.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no model folder at {folder}", "check the path, or pass a hub id such as org/name")
    try:
        is_empty = not any(folder.iterdir())
    except OSError as err:
        raise CheckpointError(f"{folder} cannot be read: {err.strerror or err}", "check its permissions") from err
    if is_empty:
        raise CheckpointError(f"the model folder {folder} is empty", _AGAIN)
    refuse_mistaken_folder(folder)
    settings = read_json(folder / CHECKPOINT_CONFIG)
    model_type, architecture = _family(folder, settings)
    if packed_layout(folder) is not None:
        raise UnsupportedModelError(f"{folder} is quantized", "export the checkpoint that it was quantized from")
    config = _complete(folder, settings)
    tensors = tuple(read_tensors(folder, lambda names: used_tensors(config, names)))
    check_dtypes(tensors)
    _check_tokenizer(folder)
    num_heads = _count(folder, settings, config, "num_attention_heads")
    hidden_size = _count(folder, settings, config, "hidden_size")
    head_dim = getattr(config, "head_dim", None) or hidden_size // num_heads
    if head_dim % _HEAD_DIM_STEP:
        raise UnsupportedModelError(
            f"{folder} has attention heads of {head_dim}; the attention kernels need a multiple of {_HEAD_DIM_STEP}",
            f"choose a model whose head_dim is a multiple of {_HEAD_DIM_STEP}",
        )
    refuse_variant(config, {name: len(rope.frequencies) for name, rope in ropes(config).items()})
    num_parameters = sum(t.num_elements for t in tensors)
    return Checkpoint(
        folder=folder,
        settings=settings,
        config=config,
        model_type=model_type,
        architecture=architecture,
        num_layers=_count(folder, settings, config, "num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=head_dim,
        vocab_size=_count(folder, settings, config, "vocab_size"),
        max_context=config.max_position_embeddings,
        attention=attention_pattern(config),
        original_context=original_context(config),
        tensors=tensors,
        num_parameters=num_parameters,
        weight_bytes=num_parameters * _FP32_BYTES,
        dtype=_main_dtype(tensors),
    )


def count_layers(folder: Path) -> int:
    """Returns the number of decoder layers of a checkpoint without reading its weights, which may be packed.

    Raises:
        CheckpointError: if the config or the tokenizer is missing or damaged, or the model is not a decoder.
        UnsupportedModelError: if the family is not supported.
    """
    settings = read_json(folder / CHECKPOINT_CONFIG)
    _family(folder, settings)
    _check_tokenizer(folder)
    return _count(folder, settings, _complete(folder, settings), "num_hidden_layers")


def check_weights(checkpoint: Checkpoint) -> None:
    """Reads every weight that the model uses once, and refuses NaN and infinity.

    Raises:
        CheckpointError: if a tensor holds NaN or infinity; the message names the tensor.
    """
    check_finite(checkpoint.tensors)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in one of a checkpoint's files.

    Raises:
        CheckpointError: if the file cannot be read or does not hold a JSON object.
    """
    return read_json_object(path, error=CheckpointError, hint=_AGAIN)


def _family(folder: Path, config: dict[str, Any]) -> tuple[str, str]:
    model_type = config.get("model_type")
    architectures = config.get("architectures") or []
    if not isinstance(model_type, str) or not isinstance(architectures, list):
        raise CheckpointError(
            f"{folder / 'config.json'} does not identify the model: model_type is {model_type!r}, architectures is {architectures!r}",
            _AGAIN,
        )
    architecture = str(architectures[0]) if architectures else "unnamed"
    if config.get("is_encoder_decoder") or not architecture.endswith(_DECODERS):
        raise CheckpointError(
            f"{folder} is not a decoder: its architecture is {architecture}",
            f"sstool exports architectures whose names end in {' or '.join(_DECODERS)}",
        )
    if model_type not in SUPPORTED_FAMILIES:
        raise UnsupportedModelError(
            f"{folder} is of the family {model_type!r}, which is not yet supported", f"supported: {', '.join(sorted(SUPPORTED_FAMILIES))}"
        )
    return model_type, architecture


def _complete(folder: Path, settings: dict[str, Any]) -> Any:
    """Returns the config as transformers reads it.

    Settings have their common names there, and missing ones have the family's defaults.
    """
    from transformers import AutoConfig

    if not all(isinstance(settings.get(key) or {}, dict) for key in ("rope_parameters", "rope_scaling")):
        raise CheckpointError(f"{folder / 'config.json'}: the rope parameters are not an object", _AGAIN)
    for key in _COUNTS:
        if settings.get(key) is not None:
            _check_count(folder, key, settings[key])
    try:
        with quiet():
            return AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except Exception as err:  # transformers' checks raise many types
        reason = " ".join(str(err).split())
        raise CheckpointError(f"{folder / 'config.json'} is not a valid config of {settings['model_type']!r}: {reason}", _AGAIN) from err


def _count(folder: Path, settings: dict[str, Any], config: Any, key: str) -> int:
    """Returns a count that config.json itself must give, under the common name or the family's own name.

    The family's default is not used, because it would not fit the weights.
    """
    own_name = config.attribute_map.get(key, key)
    value: Any = settings.get(own_name, settings.get(key))
    _check_count(folder, own_name, value)
    return int(value)


def _check_count(folder: Path, key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{folder / 'config.json'}: {key} must be a whole number of at least 1, found {value!r}", _AGAIN)


def _check_tokenizer(folder: Path) -> None:
    path = folder / TOKENIZER
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}", "create it with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        Tokenizer.from_file(str(path))
    except Exception as err:  # the library has no narrower type
        raise CheckpointError(f"{path} is not a tokenizer: {err}", _AGAIN) from err
    if (folder / TOKENIZER_CONFIG).exists():
        read_json(folder / TOKENIZER_CONFIG)
    if (folder / GENERATION_CONFIG).exists():
        read_json(folder / GENERATION_CONFIG)


def _main_dtype(tensors: Iterable[TensorRecord]) -> str:
    """Returns the data type of most parameters; others than fp16 and bf16 count as fp32."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[_DTYPE_NAMES.get(tensor.dtype, "fp32")] += tensor.num_elements
    return counts.most_common(1)[0][0] if counts else "fp32"
