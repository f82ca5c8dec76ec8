"""What follows from a search's log: rates, ranks and the speed-up that a round would have; every figure and sentence takes it from here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sstool.search.log.read import SearchLog
from sstool.search.log.records import COMPLETED, FAILED, SUGGESTED, Counts, Finalist, LatencyRow, Trial

NUM_BEST: Final = 10
"""Trials that count as the best ones."""
_HALVINGS: Final = 40


def ranked(log: SearchLog) -> list[Trial]:
    """Returns the completed trials, the best modelled speed-up first and the earlier of equals before the later."""
    completed = [t for t in log.trials if t.status == COMPLETED]
    return sorted(completed, key=lambda t: (-speedup_of(t), t.index))


def speedup_of(trial: Trial) -> float:
    """Returns a trial's modelled speed-up; 0 where it has none."""
    return trial.speedup or 0.0


def failed(log: SearchLog) -> list[Trial]:
    """Returns the failed trials."""
    return [t for t in log.trials if t.status == FAILED]


def winner(log: SearchLog) -> Trial | None:
    """Returns the chosen trial; None while the search goes on, and where nothing beat plain decoding."""
    return trial_of(log, None if log.result is None else log.result.trial)


def shown(log: SearchLog) -> Trial | None:
    """Returns the trial to show in detail; None if none completed.

    It is the winner; where nothing won, the finalist that came closest; before any was timed, the best by modelled speed.
    """
    closest = max(log.finalists, key=lambda f: f.speedup, default=None)
    return winner(log) or trial_of(log, None if closest is None else closest.trial) or next(iter(ranked(log)), None)


def trial_of(log: SearchLog, index: int | None) -> Trial | None:
    """Returns the trial of an index."""
    return next((t for t in log.trials if t.index == index), None)


def finalist_of(log: SearchLog, trial: Trial) -> Finalist | None:
    """Returns what a trial's real timing gave; None if it was not timed."""
    return next((f for f in log.finalists if f.trial == trial.index), None)


def is_warm_start(trial: Trial) -> bool:
    """Whether a trial was known before the search proposed anything of its own."""
    return trial.source not in SUGGESTED


def best_warm_start(log: SearchLog) -> Trial | None:
    """Returns the warm start of the best modelled speed; None without a completed one."""
    if log.result is not None:
        return trial_of(log, log.result.best_warm_start)
    return next((t for t in ranked(log) if is_warm_start(t)), None)


def gain(log: SearchLog) -> float | None:
    """Returns the best trial's modelled speed over the best warm start's, minus 1; so far, if the search has not ended."""
    if log.result is not None:
        return log.result.gain
    best, warm = next(iter(ranked(log)), None), best_warm_start(log)
    if best is None or warm is None or speedup_of(warm) <= 0:
        return None
    return speedup_of(best) / speedup_of(warm) - 1


def best_so_far(log: SearchLog) -> list[tuple[int, float]]:
    """Returns the best modelled speed-up up to each trial, with the trial's index, from the first completed one on."""
    curve: list[tuple[int, float]] = []
    best: float | None = None
    for trial in log.trials:
        if trial.status == COMPLETED:
            best = max(speedup_of(trial), speedup_of(trial) if best is None else best)
        if best is not None:
            curve.append((trial.index, best))
    return curve


def acceptance_rate(trial: Trial, weights: Mapping[str, float]) -> float | None:
    """Returns accepted / proposed over all kinds of text, weighted as in the objective; None if nothing was drafted."""
    shares = _shares(trial.counts, weights)
    proposed = sum(share * trial.counts[kind].proposed / trial.counts[kind].tokens for kind, share in shares.items())
    accepted = sum(share * trial.counts[kind].accepted / trial.counts[kind].tokens for kind, share in shares.items())
    return accepted / proposed if proposed > 0 else None


def tokens_per_round(trial: Trial, weights: Mapping[str, float]) -> float | None:
    """Returns emitted / rounds over all kinds of text, weighted likewise; None if nothing was decoded."""
    shares = _shares(trial.counts, weights)
    rounds = sum(share * trial.counts[kind].rounds / trial.counts[kind].tokens for kind, share in shares.items())
    return 1 / rounds if rounds > 0 else None


def skip_frequency(trials: Sequence[Trial], num_layers: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns how often each attention and each MLP is skipped in some trials, float64[num_layers] each, as parts of 1."""
    counts = np.zeros((2, num_layers))
    for trial in trials:
        counts[0, list(trial.skip.attention)] += 1
        counts[1, list(trial.skip.mlp)] += 1
    counts /= max(len(trials), 1)
    return counts[0], counts[1]


def median_clock_error(log: SearchLog) -> float:
    """Returns the median difference between measured and modelled speed over the timed trials, as a part of the modelled; 0 without any."""
    errors = [abs(t.timed.ratio - 1) for t in log.trials if t.timed is not None]
    return statistics.median(errors) if errors else 0.0


def verify_ratios(row: LatencyRow) -> NDArray[np.float64]:
    """Returns v(k), float64[widths]: at index k, verifying k drafted tokens over a plain step."""
    return np.array(row.verify) / row.verify[0]


def round_speedup(acceptance: NDArray[np.float64], cost: NDArray[np.float64], ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the speed-up of a round, E[emitted] / (k c + v(k)), with the best number k of drafted tokens for each entry.

    Every token is taken to be accepted with the same probability whatever came before, and nothing ends a draft early.

    Args:
        acceptance: float64[n], 0 to 1.
        cost: float64[n], a draft step over a plain step.
        ratios: float64[widths], v(k) at index k.
    """
    drafted = np.arange(1, len(ratios))
    emitted = np.cumsum(acceptance[:, None] ** np.arange(len(ratios)), axis=1)[:, 1:]
    speedups: NDArray[np.float64] = (emitted / (drafted * cost[:, None] + ratios[1:])).max(axis=1)
    return speedups


def iso_line(speedup: float, cost: NDArray[np.float64], ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the acceptance that gives a speed-up at each cost, float64[n]; NaN where none does.

    Args:
        speedup: the level of the line.
        cost: float64[n], a draft step over a plain step.
        ratios: float64[widths], v(k) at index k.
    """
    low, high = np.zeros_like(cost), np.ones_like(cost)
    reachable = (round_speedup(low, cost, ratios) <= speedup) & (speedup <= round_speedup(high, cost, ratios))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = round_speedup(middle, cost, ratios) >= speedup
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(reachable, high, np.nan)


def _shares(counts: Mapping[str, Counts], weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the weights of the kinds that gave tokens; all alike where none of them has a weight."""
    present = {kind: weights.get(kind, 0.0) for kind, c in counts.items() if c.tokens > 0}
    return present if sum(present.values()) > 0 else dict.fromkeys(present, 1.0)
