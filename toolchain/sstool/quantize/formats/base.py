"""What every format of quantized weights offers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from sstool.graph.passes.block_products import BlockMatrix
from sstool.graph.passes.integer_products import IntegerMatrix
from sstool.graph.products import Product
from sstool.quantize.statistics import InputStatistics

if TYPE_CHECKING:
    import torch

SHRINKINGS: Final = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Candidates for the largest number that is not clipped, as fractions of the largest weight."""
TINY: Final = float(np.finfo(np.float32).tiny)
_PART: Final = 2**22
"""Weights that are searched at once."""


class QuantizedWeights(Protocol):
    """What was chosen for one matrix."""

    def matrix(self, product: Product) -> IntegerMatrix | BlockMatrix:
        """Returns the integers, which stay lazy, and the scales of a product's matrix."""


class WeightFormat(Protocol):
    """A format of quantized weights and activations."""

    @property
    def name(self) -> str:
        """Its name in reports."""

    @property
    def bits(self) -> float:
        """Bits of a weight, its share of the scales included."""

    @property
    def clipping(self) -> tuple[float, ...]:
        """Candidates for the largest number that is not clipped, as fractions of the largest weight."""

    def factors(self, inputs: InputStatistics, weights: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields candidates for the factors that the input channels are divided by, positive, [rows].

        Args:
            inputs: the activations of these channels.
            weights: float32[rows, columns], the matrices that they enter.
        """

    def choose(
        self, matrix: NDArray[np.float32], importance: NDArray[np.float32] | None, shrinkings: tuple[float, ...]
    ) -> QuantizedWeights:
        """Returns the scales with the least squared error.

        Args:
            matrix: float32[rows, columns].
            importance: float32[rows], weight of each row's squared errors: the mean square of the activations
                of its input channel. None gives all rows the same weight.
            shrinkings: candidates for the largest number that is not clipped.
        """

    def product(self, samples: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Returns `samples @ weights` with both rounded, the weights without clipping."""


def column_parts(matrix: NDArray[Any]) -> Iterator[slice]:
    """Yields slices of the columns of a matrix, each with so few weights that copies of it are small."""
    rows, columns = matrix.shape
    width = max(1, _PART // rows)
    for first in range(0, columns, width):
        yield slice(first, min(first + width, columns))
