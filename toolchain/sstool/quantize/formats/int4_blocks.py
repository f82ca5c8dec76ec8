"""Weights of 4 bits: each block of a column has a scale and a zero point.

The kernel quantizes the activations to 8 bits, with a scale for each row and block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from sstool.graph.passes.block_products import CODES, ZERO, BlockMatrix, lazy_codes
from sstool.graph.products import Product
from sstool.quantize.formats.base import SHRINKINGS, TINY, column_parts
from sstool.quantize.statistics import InputStatistics

if TYPE_CHECKING:
    import torch

_EXPONENTS: Final = (0.1, 0.2, 0.3, 0.4, 0.5)
_HIGHEST: Final = CODES - 1
_ACTIVATION_LEVELS: Final = 127


@dataclass(frozen=True, slots=True)
class BlockScales:
    """The scales and zero points of a matrix.

    Attributes:
        block: rows of a block.
        scales: float32[blocks, columns]; may be negative.
        zeros: uint8[blocks, columns], the code that stands for 0.
    """

    block: int
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8]

    def matrix(self, product: Product) -> BlockMatrix:
        """Returns the codes, which stay lazy, the scales and the zero points of a product's matrix."""
        read = product.matrix
        return BlockMatrix(lazy_codes(product, self.block, lambda: codes(read(), self)), self.scales, self.zeros, self.block)


@dataclass(frozen=True, slots=True)
class Int4Blocks:
    """The format; `block` is the number of rows of a block."""

    block: int

    @property
    def name(self) -> str:
        """Its name in reports."""
        return f"int4 in blocks of {self.block}"

    @property
    def bits(self) -> float:
        """Bits of a weight, with its share of a scale in fp32 and of a zero point of 4 bits."""
        return 4.0 + (32.0 + 4.0) / self.block

    @property
    def clipping(self) -> tuple[float, ...]:
        """Candidates for the largest number that is not clipped, as fractions of the largest weight."""
        return (*SHRINKINGS, 0.75, 0.7)

    def factors(self, inputs: InputStatistics, weights: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yields the factors of AWQ (arXiv 2306.00978): weights of large activations get finer codes."""
        import torch

        sizes = torch.from_numpy(inputs.mean_square).sqrt().clamp_min(TINY)
        for exponent in _EXPONENTS:
            yield sizes**exponent

    def choose(self, matrix: NDArray[np.float32], importance: NDArray[np.float32] | None, shrinkings: tuple[float, ...]) -> BlockScales:
        """Returns the scales and zero points with the least squared error (see `WeightFormat`).

        Each block has the choice between the zero point 8 and one that spreads the codes from its smallest to
        its largest weight.
        """
        import torch

        blocks = -(-matrix.shape[0] // self.block)
        scales, zeros = np.empty((blocks, matrix.shape[1]), np.float32), np.empty((blocks, matrix.shape[1]), np.uint8)
        weights = None if importance is None else _blocked(torch.from_numpy(importance.copy())[:, None], self.block)
        for columns in column_parts(matrix):
            part = _blocked(torch.from_numpy(matrix[:, columns].copy()), self.block)
            scale, zero = _best(part, weights, shrinkings)
            scales[:, columns], zeros[:, columns] = scale.numpy(), zero.to(torch.uint8).numpy()
        return BlockScales(self.block, scales, zeros)

    def product(self, samples: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Returns `samples @ weights` with both rounded."""
        part = _blocked(weights, self.block)
        scale, zero = next(_candidates(part, (1.0,)))
        dense = _decoded(_codes(part, scale, zero), scale, zero).reshape(-1, weights.shape[1])[: weights.shape[0]]
        rows = _blocked(samples.T, self.block)
        bound = rows.abs().amax(dim=1, keepdim=True).clamp_min(TINY) / _ACTIVATION_LEVELS
        rounded = ((rows / bound).round() * bound).reshape(-1, samples.shape[0])[: samples.shape[1]].T
        return rounded @ dense


def codes(matrix: NDArray[np.float32], chosen: BlockScales) -> NDArray[np.uint8]:
    """Returns the codes uint8[blocks * block, columns] of a matrix; rows after the last stand for 0."""
    import torch

    blocks, columns = chosen.scales.shape
    found = np.empty((blocks * chosen.block, columns), dtype=np.uint8)
    for some in column_parts(matrix):
        part = _blocked(torch.from_numpy(matrix[:, some].copy()), chosen.block)
        scale, zero = torch.from_numpy(chosen.scales[:, some]), torch.from_numpy(chosen.zeros[:, some].astype(np.float32))
        found[:, some] = _codes(part, scale, zero).to(torch.uint8).reshape(blocks * chosen.block, -1).numpy()
    return found


def _best(part: torch.Tensor, importance: torch.Tensor | None, shrinkings: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    least: torch.Tensor | None = None
    for scale, zero in _candidates(part, shrinkings):
        error = _decoded(_codes(part, scale, zero), scale, zero).sub_(part).square_()
        total = (error if importance is None else error.mul_(importance)).sum(dim=1)
        if least is None:
            least, best = total, (scale, zero)
            continue
        is_less = total < least
        best = torch.where(is_less, scale, best[0]), torch.where(is_less, zero, best[1])
        least = torch.minimum(total, least)
    return best


def _candidates(part: torch.Tensor, shrinkings: tuple[float, ...]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields scales and zero points [blocks, columns] for weights [blocks, block, columns]."""
    import torch

    high, low = part.amax(dim=1).clamp_min(0), part.amin(dim=1).clamp_max(0)
    for shrinking in shrinkings:
        scale = ((high - low) * (shrinking / _HIGHEST)).clamp_min(TINY)
        yield scale, (-low * shrinking / scale).round_().clamp_(0, _HIGHEST)
    # Code 0 stands for the weight with the largest absolute value: there is one code more below 8 than above.
    largest = torch.where(high > -low, -high, -low)
    for shrinking in shrinkings:
        scale = largest * (shrinking / ZERO)
        yield torch.where(scale.abs() < TINY, TINY, scale), torch.full_like(scale, ZERO)


def _codes(part: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    return (part / scale[:, None]).round_().add_(zero[:, None]).clamp_(0, _HIGHEST)


def _decoded(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    return codes.sub_(zero[:, None]).mul_(scale[:, None])


def _blocked(rows: torch.Tensor, block: int) -> torch.Tensor:
    """Returns rows [n, columns] as [blocks, block, columns], with zeros after the last row."""
    import torch

    missing = -len(rows) % block
    padded = torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
    return padded.reshape(-1, block, rows.shape[1])
