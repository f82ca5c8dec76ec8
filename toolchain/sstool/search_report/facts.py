"""Rates, ranks and modelled speed-ups from a search's log, for all figures and texts of the report."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sstool.search.log.read import SearchLog
from sstool.search.log.records import COMPLETED, FAILED, SUGGESTED, Counts, Finalist, LatencyRow, Trial, shares_of

NUM_BEST: Final = 10
"""How many trials the table and the skip frequencies call the best ones."""
_HALVINGS: Final = 40


def ranked(log: SearchLog) -> list[Trial]:
    """Returns the completed trials by modelled speed-up, best first, and the earlier of equals first."""
    completed = [t for t in log.trials if t.status == COMPLETED]
    return sorted(completed, key=lambda t: (-speedup_of(t), t.index))


def speedup_of(trial: Trial) -> float:
    """Returns a trial's modelled speed-up; 0 if it has none."""
    return trial.speedup or 0.0


def failed(log: SearchLog) -> list[Trial]:
    """Returns the failed trials."""
    return [t for t in log.trials if t.status == FAILED]


def winner(log: SearchLog) -> Trial | None:
    """Returns the chosen trial.

    It is None while the search runs, and if no draft beat autoregressive decoding (mode `plain`).
    """
    return trial_of(log, None if log.result is None else log.result.trial)


def shown(log: SearchLog) -> Trial | None:
    """Returns the trial to show in detail; None if none completed.

    It is the winner. Without a winner it is the fastest finalist, and before any finalist was timed the trial
    with the best modelled speed-up.
    """
    closest = max(log.finalists, key=lambda f: f.speedup, default=None)
    return winner(log) or trial_of(log, None if closest is None else closest.trial) or next(iter(ranked(log)), None)


def trial_of(log: SearchLog, index: int | None) -> Trial | None:
    """Returns the trial with an index; None if there is none."""
    return next((t for t in log.trials if t.index == index), None)


def finalist_of(log: SearchLog, trial: Trial) -> Finalist | None:
    """Returns a trial's head-to-head timing as a finalist; None if it was no finalist."""
    return next((f for f in log.finalists if f.trial == trial.index), None)


def is_warm_start(trial: Trial) -> bool:
    """Returns whether a trial is a warm start: neither suggested by Ax nor drawn at random."""
    return trial.source not in SUGGESTED


def best_warm_start(log: SearchLog) -> Trial | None:
    """Returns the warm start with the best modelled speed-up; None if no warm start completed."""
    if log.result is not None:
        return trial_of(log, log.result.best_warm_start)
    return next((t for t in ranked(log) if is_warm_start(t)), None)


def gain(log: SearchLog) -> float | None:
    """Returns the best trial's modelled speed-up / the best warm start's - 1; None if unknown.

    While the search runs, the value covers the trials so far.
    """
    if log.result is not None:
        return log.result.gain
    best, warm = next(iter(ranked(log)), None), best_warm_start(log)
    if best is None or warm is None or speedup_of(warm) <= 0:
        return None
    return speedup_of(best) / speedup_of(warm) - 1


def best_so_far(log: SearchLog) -> list[tuple[int, float]]:
    """Returns trial indices with the best modelled speed-up so far, from the first completed trial on."""
    curve: list[tuple[int, float]] = []
    best: float | None = None
    for trial in log.trials:
        if trial.status == COMPLETED:
            best = max(speedup_of(trial), speedup_of(trial) if best is None else best)
        if best is not None:
            curve.append((trial.index, best))
    return curve


def acceptance_rate(trial: Trial, weights: Mapping[str, float]) -> float | None:
    """Returns the acceptance rate: accepted / proposed; None if nothing was drafted.

    The kinds of text are weighted as in the score of the search.

    Args:
        trial: the trial with its counts by kind of text.
        weights: weight of each kind of text.
    """
    proposed = _per_token(trial, weights, lambda counts: counts.proposed)
    accepted = _per_token(trial, weights, lambda counts: counts.accepted)
    return accepted / proposed if proposed > 0 else None


def tokens_per_round(trial: Trial, weights: Mapping[str, float]) -> float | None:
    """Returns the tokens per round: emitted / rounds; None if nothing was decoded.

    The kinds of text are weighted as in the score of the search.

    Args:
        trial: the trial with its counts by kind of text.
        weights: weight of each kind of text.
    """
    rounds = _per_token(trial, weights, lambda counts: counts.rounds)
    return 1 / rounds if rounds > 0 else None


def skip_frequency(trials: Sequence[Trial], num_layers: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the share of trials that skip each attention and each MLP, 0 to 1, two float64[num_layers]."""
    counts = np.zeros((2, num_layers))
    for trial in trials:
        counts[0, list(trial.skip.attention)] += 1
        counts[1, list(trial.skip.mlp)] += 1
    counts /= max(len(trials), 1)
    return counts[0], counts[1]


def median_clock_error(log: SearchLog) -> float:
    """Returns the median of |measured / modelled speed - 1|; 0 if no trial was timed."""
    errors = [abs(t.timed.ratio - 1) for t in log.trials if t.timed is not None]
    return statistics.median(errors) if errors else 0.0


def verify_ratios(row: LatencyRow) -> NDArray[np.float64]:
    """Returns the verify ratios v(k), float64[query_lengths].

    Index k holds the latency of a pass over k + 1 tokens, divided by that of an autoregressive step.
    """
    return np.array(row.verify) / row.verify[0]


def round_speedup(acceptance: NDArray[np.float64], cost: NDArray[np.float64], ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a round's speed-up E[emitted] / (k c + v(k)) at the best draft length k, float64[n].

    Assumes that every token is accepted with the same probability, independently of the others, and that no
    stopping rule ends a draft early.

    Args:
        acceptance: float64[n], the probability that a token is accepted.
        cost: float64[n], the cost ratio c: draft step / autoregressive step.
        ratios: float64[query_lengths], v(k) at index k.
    """
    drafted = np.arange(1, len(ratios))
    emitted = np.cumsum(acceptance[:, None] ** np.arange(len(ratios)), axis=1)[:, 1:]
    speedups: NDArray[np.float64] = (emitted / (drafted * cost[:, None] + ratios[1:])).max(axis=1)
    return speedups


def iso_line(speedup: float, cost: NDArray[np.float64], ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the acceptance probability that gives a speed-up at each cost ratio, float64[n]; else NaN.

    Args:
        speedup: the speed-up along the line.
        cost: float64[n], the cost ratio c: draft step / autoregressive step.
        ratios: float64[query_lengths], v(k) at index k.
    """
    low, high = np.zeros_like(cost), np.ones_like(cost)
    reachable = (round_speedup(low, cost, ratios) <= speedup) & (speedup <= round_speedup(high, cost, ratios))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = round_speedup(middle, cost, ratios) >= speedup
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(reachable, high, np.nan)


def _per_token(trial: Trial, weights: Mapping[str, float], count: Callable[[Counts], int]) -> float:
    """Returns a count per token, weighted over the kinds of text that gave tokens."""
    present = {kind: counts for kind, counts in trial.counts.items() if counts.tokens > 0}
    return sum(share * count(present[kind]) / present[kind].tokens for kind, share in shares_of(weights, present).items())
