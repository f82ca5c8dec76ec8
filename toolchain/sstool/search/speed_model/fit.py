"""Fits a row of the latency table to measured steps.

A draft has a *size*, in seconds: a base plus a share for each sublayer that it keeps, fitted to probe drafts.
Shared weights and int4 weights have costs of their own, fitted to probes of their own.
The size approximates the time of a step, but the processor's caches change it. They hold more of a small
draft than of a large one, and the first step finds less in them than later steps do, because the verify pass
before it has read all weights. So the first step and the later steps each have a factor that depends on the
draft's size.
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
from sstool.search.log.records import DraftCosts, LatencyRow
from sstool.search.speed_model.probes import ladder_sets

_MOST_STALLED: Final = 10.0
"""Upper limit of one time, in medians of its group; a longer time counts as this."""


@dataclass(frozen=True, slots=True)
class StepSample:
    """The times of the steps of some probes, which have one kind of weights, in seconds.

    Attributes:
        probes: skip sets of the probes.
        first: times of the first steps, by probe.
        later: mean times of the later steps, by probe.
    """

    probes: list[Bits]
    first: list[list[float]]
    later: list[list[float]]


@dataclass(frozen=True, slots=True)
class CostSample:
    """The times measured at one context length, in seconds.

    Attributes:
        plain: times of autoregressive steps (mode `plain`).
        verify: times of verify passes with acceptance, by query length.
        shared: times of drafts over shared weights.
        int4: times of drafts over int4 weights; None if no draft may have any.
    """

    plain: list[float]
    verify: dict[int, list[float]]
    shared: StepSample
    int4: StepSample | None = None

    def stalls(self) -> float:
        """Returns the total time relative to the total if each time were its group's median; at least 1.

        The table is fitted to medians, which ignore the few steps that the operating system interrupts. But a
        text takes the sum of all its steps, so the table is multiplied by this factor. One factor serves for
        all groups: interruptions are too rare to estimate for each group, and they hit all groups alike. A
        pause of seconds says nothing about the next one, so no time counts for more than `_MOST_STALLED`
        medians.
        """
        steps = [group for sample in (self.shared, self.int4) if sample is not None for group in (*sample.first, *sample.later)]
        groups = [(statistics.median(g), g) for g in (self.plain, *self.verify.values(), *steps) if g]
        counted = sum(min(seconds, _MOST_STALLED * median) for median, group in groups for seconds in group)
        return max(1.0, counted / sum(len(group) * median for median, group in groups))


def fit(context: int, sample: CostSample, weights: NDArray[np.float64]) -> tuple[LatencyRow, float]:
    """Returns the table's row for one context length, and its largest relative error over the probes' steps.

    Args:
        context: context length, in positions before the step.
        sample: measured times.
        weights: bytes of each sublayer's own weights, float64[2 * num_layers] in the order of `space.Bits`.
    """
    stalls = sample.stalls()
    verify = _verify_by_query_length(statistics.median(sample.plain), {n: statistics.median(t) for n, t in sample.verify.items()})
    shared, error = _fit_steps(sample.shared, weights, stalls)
    int4 = None
    if sample.int4 is not None:
        int4, other = _fit_steps(sample.int4, weights, stalls)
        error = max(error, other)
    return LatencyRow(context=context, verify=tuple(stalls * v for v in verify), draft=shared, int4=int4), error


def _fit_steps(sample: StepSample, weights: NDArray[np.float64], stalls: float) -> tuple[DraftCosts, float]:
    """Returns the costs of draft steps over one kind of weights, and their largest relative error."""
    num_layers = len(weights) // 2
    kinds = (slice(0, num_layers), slice(num_layers, None))
    # A sublayer's share is proportional to the bytes of its weights. Attention and MLP have different rates,
    # because attention has more small operations per byte.
    units = np.concatenate([weights[k] / max(weights[k].mean(), 1.0) for k in kinds])
    kept = 1 - np.array(sample.probes)
    design = np.stack([np.ones(len(kept)), *((kept[:, k] * units[k]).sum(axis=1) for k in kinds)], axis=1)
    first = np.array([statistics.median(times) for times in sample.first])
    # If the KV cache has no room for a second step, later steps are assumed to take as long as the first.
    later = np.array([statistics.median(times or [seconds]) for times, seconds in zip(sample.later, first, strict=True)])
    solution = _relative_least_squares(design, first)
    sizes = design @ solution
    ladder = _rising(sizes, sample.probes)
    factors = [_without_outliers((seconds / sizes)[ladder]) for seconds in (first, later)]
    errors = [sizes * np.interp(sizes, sizes[ladder], f) / seconds - 1 for f, seconds in zip(factors, (first, later), strict=True)]
    costs = DraftCosts(
        base=float(stalls * solution[0]),
        attention=tuple(float(stalls * s) for s in solution[1] * units[kinds[0]]),
        mlp=tuple(float(stalls * s) for s in solution[2] * units[kinds[1]]),
        sizes=tuple(float(stalls * s) for s in sizes[ladder]),
        first=tuple(float(f) for f in factors[0]),
        later=tuple(float(f) for f in factors[1]),
    )
    return costs, float(np.abs(errors).max())


def _rising(sizes: NDArray[np.float64], probes: Sequence[Bits]) -> NDArray[np.int64]:
    """Returns the indices of the ladder's probes by ascending size, one for each size.

    If no probe is of the ladder, as for a single layer, all probes are used.
    """
    ladder = {*ladder_sets(len(probes[0]) // 2)} & {*probes} or {*probes}
    places = np.flatnonzero([bits in ladder for bits in probes])
    return places[np.unique(sizes[places], return_index=True)[1]]


def _without_outliers(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the running median of three values; the first and the last value stay as they are.

    A single outlier among the probes would mislead the search about all drafts of its size.
    """
    if len(values) < 3:
        return values
    inner = np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)
    return np.concatenate([values[:1], inner, values[-1:]])


def _relative_least_squares(design: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the costs, each at least 0, with the least squared relative error over the probes."""
    from scipy.optimize import nnls

    scaled = design / seconds[:, None]
    solution, _ = nnls(scaled, np.ones(len(seconds)))
    return np.asarray(solution, dtype=np.float64)


def _verify_by_query_length(plain: float, measured: dict[int, float]) -> tuple[float, ...]:
    """Returns the seconds of passes by query length, from 1 on, interpolated and made non-decreasing."""
    lengths = np.arange(1, MAX_QUERY_LENGTH + 1)
    known = sorted(measured)
    values = np.interp(lengths, [1, *known], [plain, *(measured[n] for n in known)])
    return tuple(float(v) for v in np.maximum.accumulate(values))
