"""Chooses, for each input of products, factors that move its large channels into the weights.

The candidates are the format's own (SmoothQuant's for int8, AWQ's for int4). Each input takes the one with
the least error of the products on samples of the calibration text, or none if that gains little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from sstool.graph.channel_scaling import scaling_place
from sstool.graph.products import ProductGroup
from sstool.quantize.formats.base import WeightFormat
from sstool.quantize.statistics import InputStatistics

if TYPE_CHECKING:
    import torch

_LEAST_GAIN: Final = 0.95
"""Factors are used only if they reduce the squared error to this fraction or less."""
_MOST_COLUMNS: Final = 2048
"""Columns of the matrices that errors are measured on."""
_TINY: Final = 1e-12


def choose_factors(
    groups: list[ProductGroup], statistics: Mapping[str, InputStatistics], chosen: WeightFormat
) -> dict[str, NDArray[np.float32]]:
    """Returns the factors float32[rows] of the groups that gain from them, by name.

    Args:
        groups: groups of products.
        statistics: the activations that enter each group.
        chosen: format of the weights.
    """
    factors = {}
    for group in groups:
        if scaling_place(group) is None:
            continue
        found = _best(group, statistics[group.name], chosen)
        if found is not None:
            factors[group.name] = found
    return factors


def _best(group: ProductGroup, statistics: InputStatistics, chosen: WeightFormat) -> NDArray[np.float32] | None:
    import torch

    weights = torch.from_numpy(np.concatenate([_some_columns(product.matrix()) for product in group.products], axis=1))
    samples = torch.from_numpy(statistics.samples)
    exact = samples @ weights
    used = (torch.from_numpy(statistics.largest) > _TINY) & (weights.abs().amax(dim=1) > _TINY)
    least, best = _LEAST_GAIN * _squared(chosen.product(samples, weights) - exact), None
    for candidate in chosen.factors(statistics, weights):
        factor = torch.where(used, candidate, 1.0)
        factor = factor / factor[used].log().mean().exp() if used.any() else factor
        error = _squared(chosen.product(samples / factor, weights * factor[:, None]) - exact)
        if error < least:
            least, best = error, factor
    return None if best is None else best.numpy()


def _squared(error: torch.Tensor) -> float:
    return float(error.square().sum())


def _some_columns(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    return matrix[:, :: -(-matrix.shape[1] // _MOST_COLUMNS)]
