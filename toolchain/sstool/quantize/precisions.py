"""How each quantized data type treats a model: the usual format, and the one for sublayers that lose most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sstool.quantize.formats.base import WeightFormat
from sstool.quantize.formats.int4_blocks import Int4Blocks
from sstool.quantize.formats.int8_columns import FULL_LEVELS, Int8Columns

_FP32_BITS: Final = 32.0
EXACT_BLOCK: Final = 32
"""Rows of a block with which ONNX Runtime's kernels give equal bits at every query length, where measured."""
BLOCKS: Final = (EXACT_BLOCK, 64, 128)


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The formats of a data type.

    Attributes:
        usual: format of most sublayers.
        finer: format of the sublayers that lose most; None for fp32.
        budget: largest growth of the weights by `finer`, as a fraction of their size in `usual`.
    """

    usual: WeightFormat
    finer: WeightFormat | None
    budget: float

    @property
    def growth(self) -> float:
        """How much weights grow from `usual` to `finer`, as a fraction of their size."""
        return (_FP32_BITS if self.finer is None else self.finer.bits) / self.usual.bits - 1


def quantization_of(dtype: str, *, levels: int = FULL_LEVELS, block: int = EXACT_BLOCK) -> Quantization:
    """Returns the formats of a data type.

    Args:
        dtype: a quantized data type.
        levels: largest integer of a weight of 8 bits.
        block: rows of a block of weights of 4 bits.
    """
    int8 = Int8Columns(levels)
    if dtype == "int8":
        return Quantization(usual=int8, finer=None, budget=0.1)
    return Quantization(usual=Int4Blocks(block), finer=int8, budget=0.2)
