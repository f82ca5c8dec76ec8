"""Reads from a config which format of packed weights a checkpoint has, and refuses what cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ssruntime.artifact import CHECKPOINT_CONFIG
from ssruntime.errors import CheckpointError, UnsupportedModelError
from ssruntime.strict_reader import read_json_object

GPTQ: Final = "gptq"
AWQ: Final = "awq"
BITS: Final = 4
SMALLEST_GROUP: Final = 32
WHOLE_COLUMN: Final = -1
"""Group size that stands for all rows."""

_UNPACKED: Final = "export the checkpoint that it was quantized from"
_FORMATS: Final = {GPTQ: ("checkpoint_format", ("gptq", "gptq_v2")), AWQ: ("version", ("gemm",))}
"""The key of each method's storage format, and the formats that are read; the first one is the default."""


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """How a checkpoint stores its packed weights.

    Attributes:
        method: `gptq` or `awq`.
        group: rows that share a scale and a zero point; -1 for all.
        zero_offset: what is added to a stored zero point.
        has_order: whether the rows may be grouped in an order of their own (`desc_act`).
    """

    method: str
    group: int
    zero_offset: int
    has_order: bool


def packed_layout(folder: Path) -> PackedLayout | None:
    """Returns how a checkpoint stores packed weights; None if it has none.

    Raises:
        CheckpointError: if the config cannot be read, or its quantization is not described.
        UnsupportedModelError: if the weights are packed in a way that cannot be read; the message says which.
    """
    path = folder / CHECKPOINT_CONFIG
    if not path.is_file():
        return None  # `describe_checkpoint` says what is missing
    settings = read_json_object(path, error=CheckpointError, hint="download the checkpoint again")
    if settings.get("quantization"):  # MLX's key
        raise UnsupportedModelError(f"{folder} is quantized for MLX, which is not read", _UNPACKED)
    quantization = settings.get("quantization_config")
    if not quantization:
        return None
    if not isinstance(quantization, dict):
        raise CheckpointError(f"{path}: quantization_config is not an object", "download the checkpoint again")
    return _layout(folder, quantization)


def _layout(folder: Path, quantization: dict[str, Any]) -> PackedLayout:
    method = quantization.get("quant_method")
    if method not in _FORMATS:
        raise UnsupportedModelError(f"{folder} is quantized with {method!r}; gptq and awq are read", _UNPACKED)
    key, formats = _FORMATS[method]
    stored = str(quantization.get(key) or formats[0]).lower()
    if stored not in formats:
        raise UnsupportedModelError(
            f"{folder} is quantized with {method} and stored as {stored!r}; {', '.join(formats)} are read", _UNPACKED
        )
    bits = quantization.get("bits", quantization.get("w_bit"))
    if bits != BITS:
        raise UnsupportedModelError(f"{folder} is quantized to {bits!r} bits; {BITS} are read", _UNPACKED)
    group = quantization.get("group_size", quantization.get("q_group_size"))
    is_group = (
        isinstance(group, int) and not isinstance(group, bool) and (group == WHOLE_COLUMN or (group > 0 and group % SMALLEST_GROUP == 0))
    )
    if not is_group:
        raise UnsupportedModelError(f"{folder} is quantized in groups of {group!r}; multiples of {SMALLEST_GROUP} are read", _UNPACKED)
    return PackedLayout(
        method=method,
        group=int(group or 0),
        zero_offset=1 if stored == "gptq" else 0,
        has_order=bool(quantization.get("desc_act")),
    )
