"""Weights of 8 bits with a scale for each column, and activations of 8 bits with a scale for each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sstool.graph.passes.integer_products import LEVELS, IntegerMatrix
from sstool.graph.products import Product
from sstool.quantize.formats.base import SHRINKINGS, TINY, column_parts
from sstool.quantize.statistics import InputStatistics

if TYPE_CHECKING:
    import torch

_EXPONENTS: Final = (0.35, 0.5, 0.65, 0.8)
FULL_LEVELS: Final = LEVELS
SAFE_LEVELS: Final = 64
"""Largest weight of which two, times the largest activation each, have a sum that fits into 16 bits."""


@dataclass(frozen=True, slots=True)
class ColumnScales:
    """The scales of a matrix.

    Attributes:
        levels: largest integer.
        scales: float32[columns].
    """

    levels: int
    scales: NDArray[np.float32]

    def matrix(self, product: Product) -> IntegerMatrix:
        """Returns the integers, which stay lazy, and the scales of a product's matrix."""
        read, name = product.matrix, f"{product.name}.int8"
        # The node is gone when the tensor is read, but not the weight that `read` refers to.
        lazy = ir.LazyTensor(
            lambda: ir.tensor(rounded(read(), self.scales, levels=self.levels), name=name),
            dtype=ir.DataType.INT8,
            shape=ir.Shape(product.shape),
            name=name,
        )
        return IntegerMatrix(lazy, self.scales)


@dataclass(frozen=True, slots=True)
class Int8Columns:
    """The format; `levels` is the largest integer of a weight."""

    levels: int

    @property
    def name(self) -> str:
        """Its name in reports."""
        return "int8" if self.levels == FULL_LEVELS else "int8 of 7 bits"

    @property
    def bits(self) -> float:
        """Bits of a weight; the scales of columns hardly count."""
        return 8.0

    @property
    def clipping(self) -> tuple[float, ...]:
        """Candidates for the largest number that is not clipped, as fractions of the largest weight."""
        return SHRINKINGS

    def factors(self, inputs: InputStatistics, weights: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields the factors of SmoothQuant (arXiv 2211.10438): large activations become large weights."""
        import torch

        largest = torch.from_numpy(inputs.largest).clamp_min(TINY)
        row_largest = weights.abs().amax(dim=1).clamp_min(TINY)
        for exponent in _EXPONENTS:
            yield largest**exponent / row_largest ** (1 - exponent)

    def choose(self, matrix: NDArray[np.float32], importance: NDArray[np.float32] | None, shrinkings: tuple[float, ...]) -> ColumnScales:
        """Returns the scales with the least squared error (see `WeightFormat`)."""
        return ColumnScales(self.levels, column_scales(matrix, importance, levels=self.levels, shrinkings=shrinkings))

    def product(self, samples: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Returns `samples @ weights` with both rounded."""
        bound = samples.abs().amax(dim=1, keepdim=True).clamp_min(TINY) / LEVELS
        scale = weights.abs().amax(dim=0).clamp_min(TINY) / self.levels
        return ((samples / bound).round() * bound) @ ((weights / scale).round() * scale)


def column_scales(
    matrix: NDArray[np.float32], importance: NDArray[np.float32] | None, *, levels: int, shrinkings: tuple[float, ...] = SHRINKINGS
) -> NDArray[np.float32]:
    """Returns the scale of each column: the candidate with the least squared error.

    A smaller scale clips the largest weights and rounds the others more finely.

    Args:
        matrix: float32[rows, columns].
        importance: float32[rows], weight of each row's squared errors; None gives all the same weight.
        levels: largest integer.
        shrinkings: the candidates.
    """
    import torch

    scales = np.empty(matrix.shape[1], dtype=np.float32)
    weights = None if importance is None else torch.from_numpy(importance)[:, None]
    for columns in column_parts(matrix):
        part = torch.from_numpy(matrix[:, columns].copy())
        whole = (part.abs().amax(dim=0) / levels).clamp_min(TINY)
        best, least = whole, torch.full_like(whole, torch.inf)
        for shrinking in shrinkings if len(shrinkings) > 1 else ():
            scale = whole * shrinking
            error = (part / scale).round_().clamp_(-levels, levels).mul_(scale).sub_(part).square_()
            total = (error if weights is None else error.mul_(weights)).sum(dim=0)
            best, least = torch.where(total < least, scale, best), torch.minimum(total, least)
        scales[columns] = best.numpy()
    return scales


def rounded(matrix: NDArray[np.float32], scales: NDArray[np.float32], *, levels: int) -> NDArray[np.int8]:
    """Returns the integers int8[rows, columns] of a matrix for the scales of its columns."""
    import torch

    found = np.empty(matrix.shape, dtype=np.int8)
    for columns in column_parts(matrix):
        part = torch.from_numpy(matrix[:, columns].copy()) / torch.from_numpy(scales[columns])
        found[:, columns] = part.round_().clamp_(-levels, levels).to(torch.int8).numpy()
    return found
