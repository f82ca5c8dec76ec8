"""From measured steps to a row of the latency table.

A draft has a size: a base and a share for each sublayer it keeps, fitted to probe drafts. What its steps take is nearly that, but not
quite: the processor's caches keep more of a small draft than of a large one, and the first step, after verify has read all the weights,
finds less there than later ones do (512 wide, 24 layers, keeping half: 4.0 ms, then 3.1 ms). So the first step and a later one each have
a factor by the draft's size.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.graph_io import MAX_QUERY_LENGTH
from sstool.search.drafts.space import Bits
from sstool.search.log.records import LatencyRow
from sstool.search.speed_model.probes import ladder_sets

_MOST_STALLED: Final = 10.0
"""Medians that one time counts for at most."""


@dataclass(frozen=True, slots=True)
class CostSample:
    """Seconds of what was measured at one context length.

    Attributes:
        plain: plain steps.
        verify: by width, verify passes with judging them.
        first: by probe, the first steps of drafts.
        later: by probe, the mean of a draft's later steps.
    """

    plain: list[float]
    verify: dict[int, list[float]]
    first: list[list[float]]
    later: list[list[float]]

    def stalls(self) -> float:
        """Returns how much more everything took together than if each time had been the median of its like, at least 1.

        A text's time is the sum of its steps', the few that the system held up among them, which medians leave out (measured on a shared
        machine: 4 %). There are too few of them to see which part they hit, and they hit all alike. A machine that stood still for
        seconds says nothing of the next one: no time counts for more than a few medians.
        """
        groups = [(statistics.median(g), g) for g in (self.plain, *self.verify.values(), *self.first, *self.later) if g]
        counted = sum(min(seconds, _MOST_STALLED * median) for median, group in groups for seconds in group)
        return max(1.0, counted / sum(len(group) * median for median, group in groups))


def fit(context: int, sample: CostSample, probes: Sequence[Bits], weights: NDArray[np.float64]) -> tuple[LatencyRow, float]:
    """Fits the costs of one context length.

    Args:
        context: positions before the steps.
        sample: what was measured.
        probes: the skip sets of `sample.first` and `sample.later`, in their order.
        weights: bytes of each sublayer's own weights, float64[2 * num_layers] in the order of `space.Bits`.

    Returns:
        The row, and the largest relative error of a modelled step against the probes' own.
    """
    num_layers = len(weights) // 2
    kinds = (slice(0, num_layers), slice(num_layers, None))
    # A sublayer's share goes with the bytes it reads, at a rate of its kind's own: attention has more small operations to a byte.
    units = np.concatenate([weights[k] / max(weights[k].mean(), 1.0) for k in kinds])
    kept = 1 - np.array(probes)
    design = np.stack([np.ones(len(probes)), *((kept[:, k] * units[k]).sum(axis=1) for k in kinds)], axis=1)
    first = np.array([statistics.median(times) for times in sample.first])
    # Where the cache has no room for a second step, a later one is taken to be like the first.
    later = np.array([statistics.median(times or [seconds]) for times, seconds in zip(sample.later, first, strict=True)])
    solution = _relative_least_squares(design, first)
    sizes = design @ solution
    ladder = _rising(sizes, probes)
    factors = [_without_outliers((seconds / sizes)[ladder]) for seconds in (first, later)]
    errors = [sizes * np.interp(sizes, sizes[ladder], f) / seconds - 1 for f, seconds in zip(factors, (first, later), strict=True)]
    verify = _verify_by_width(statistics.median(sample.plain), {w: statistics.median(t) for w, t in sample.verify.items()})
    stalls = sample.stalls()
    row = LatencyRow(
        context=context,
        verify=tuple(stalls * v for v in verify),
        draft_base=float(stalls * solution[0]),
        attention=tuple(float(stalls * s) for s in solution[1] * units[kinds[0]]),
        mlp=tuple(float(stalls * s) for s in solution[2] * units[kinds[1]]),
        sizes=tuple(float(stalls * s) for s in sizes[ladder]),
        first=tuple(float(f) for f in factors[0]),
        later=tuple(float(f) for f in factors[1]),
    )
    return row, float(np.abs(errors).max())


def _rising(sizes: NDArray[np.float64], probes: Sequence[Bits]) -> NDArray[np.int64]:
    """Returns the places of the ladder's probes, by rising size and without equals; of all probes where there is no ladder."""
    ladder = set(ladder_sets(len(probes[0]) // 2)) or set(probes)
    places = np.flatnonzero([bits in ladder for bits in probes])
    return places[np.unique(sizes[places], return_index=True)[1]]


def _without_outliers(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the running median of three, the ends as they are: one odd probe would mislead the search about all drafts of its size."""
    if len(values) < 3:
        return values
    inner = np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)
    return np.concatenate([values[:1], inner, values[-1:]])


def _relative_least_squares(design: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solves for costs of at least 0 that fit every probe with the same relative care."""
    from scipy.optimize import nnls

    scaled = design / seconds[:, None]
    solution, _ = nnls(scaled, np.ones(len(seconds)))
    return np.asarray(solution, dtype=np.float64)


def _verify_by_width(plain: float, measured: dict[int, float]) -> tuple[float, ...]:
    """Returns seconds by width, 1 first; a wider pass is never taken to be cheaper than a narrower one."""
    widths = np.arange(1, MAX_QUERY_LENGTH + 1)
    known = sorted(measured)
    values = np.interp(widths, [1, *known], [plain, *(measured[w] for w in known)])
    return tuple(float(v) for v in np.maximum.accumulate(values))
