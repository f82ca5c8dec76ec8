"""Turns a matrix into integers and scales: the scale of each column is the best of a few."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

SHRINKINGS: Final = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Candidates for the largest number that is not clipped, as fractions of the column's largest weight."""
_BLOCK: Final = 2**22
"""Weights that are searched at once."""
_TINY: Final = float(np.finfo(np.float32).tiny)


def column_scales(
    matrix: NDArray[np.float32], importance: NDArray[np.float32] | None, *, levels: int, shrinkings: tuple[float, ...] = SHRINKINGS
) -> NDArray[np.float32]:
    """Returns the scale of each column: the candidate with the least squared error.

    A smaller scale clips the largest weights and rounds the others more finely.

    Args:
        matrix: float32[rows, columns].
        importance: float32[rows], weight of each row's squared errors: the mean square of the activations of
            its input channel. None gives all rows the same weight.
        levels: largest integer.
        shrinkings: the candidates.
    """
    import torch

    scales = np.empty(matrix.shape[1], dtype=np.float32)
    weights = None if importance is None else torch.from_numpy(importance)[:, None]
    for columns in _blocks(*matrix.shape):
        block = torch.from_numpy(matrix[:, columns].copy())
        whole = (block.abs().amax(dim=0) / levels).clamp_min(_TINY)
        best, least = whole, torch.full_like(whole, torch.inf)
        for shrinking in shrinkings if len(shrinkings) > 1 else ():
            scale = whole * shrinking
            error = (block / scale).round_().clamp_(-levels, levels).mul_(scale).sub_(block).square_()
            total = (error if weights is None else error.mul_(weights)).sum(dim=0)
            best, least = torch.where(total < least, scale, best), torch.minimum(total, least)
        scales[columns] = best.numpy()
    return scales


def rounded(matrix: NDArray[np.float32], scales: NDArray[np.float32], *, levels: int) -> NDArray[np.int8]:
    """Returns the integers int8[rows, columns] of a matrix for the scales of its columns."""
    import torch

    found = np.empty(matrix.shape, dtype=np.int8)
    for columns in _blocks(*matrix.shape):
        block = torch.from_numpy(matrix[:, columns].copy()) / torch.from_numpy(scales[columns])
        found[:, columns] = block.round_().clamp_(-levels, levels).to(torch.int8).numpy()
    return found


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    width = max(1, _BLOCK // rows)
    for first in range(0, columns, width):
        yield slice(first, min(first + width, columns))
