"""Chooses, for each input of products, factors that move its large channels into the weights.

The factor of channel k is `largest|x_k|**a / largest|w_k|**(1 - a)`. Source: SmoothQuant, arXiv 2211.10438,
which takes one `a` for a model; here each input has its own, the one with the least error of the products on
samples of the calibration text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from sstool.graph.channel_scaling import scaling_place
from sstool.graph.passes.integer_products import LEVELS
from sstool.graph.products import ProductGroup
from sstool.quantize.statistics import InputStatistics

if TYPE_CHECKING:
    import torch

EXPONENTS: Final = (0.35, 0.5, 0.65, 0.8)
_LEAST_GAIN: Final = 0.95
"""Factors are used only if they reduce the squared error to this fraction or less."""
_MOST_COLUMNS: Final = 2048
"""Columns of the matrices that errors are measured on."""
_TINY: Final = 1e-12


def choose_factors(groups: list[ProductGroup], statistics: Mapping[str, InputStatistics], *, levels: int) -> dict[str, NDArray[np.float32]]:
    """Returns the factors float32[rows] of the groups that gain from them, by name.

    Args:
        groups: groups of products.
        statistics: the activations that enter each group.
        levels: largest integer of a quantized weight.
    """
    factors = {}
    for group in groups:
        if scaling_place(group) is None:
            continue
        found = _best(group, statistics[group.name], levels)
        if found is not None:
            factors[group.name] = found
    return factors


def _best(group: ProductGroup, statistics: InputStatistics, levels: int) -> NDArray[np.float32] | None:
    import torch

    weights = torch.from_numpy(np.concatenate([_some_columns(product.matrix()) for product in group.products], axis=1))
    samples = torch.from_numpy(statistics.samples)
    exact = samples @ weights
    largest, row_largest = torch.from_numpy(statistics.largest), weights.abs().amax(dim=1)
    used = (largest > _TINY) & (row_largest > _TINY)
    least, best = _LEAST_GAIN * _error(samples, weights, exact, levels), None
    for exponent in EXPONENTS:
        factor = torch.where(used, largest.clamp_min(_TINY) ** exponent / row_largest.clamp_min(_TINY) ** (1 - exponent), 1.0)
        factor = factor / factor[used].log().mean().exp() if used.any() else factor
        error = _error(samples / factor, weights * factor[:, None], exact, levels)
        if error < least:
            least, best = error, factor
    return None if best is None else best.numpy()


def _error(samples: torch.Tensor, weights: torch.Tensor, exact: torch.Tensor, levels: int) -> float:
    """Returns the squared error of a product whose activations and weights are rounded."""
    bound = samples.abs().amax(dim=1, keepdim=True).clamp_min(_TINY) / LEVELS
    scale = weights.abs().amax(dim=0).clamp_min(_TINY) / levels
    found = ((samples / bound).round() * bound) @ ((weights / scale).round() * scale)
    return float((found - exact).square().sum())


def _some_columns(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    return matrix[:, :: -(-matrix.shape[1] // _MOST_COLUMNS)]
