"""What a search concludes: the finalist that won, or that nothing beat plain decoding, and what the search added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sstool.search.log.records import SUGGESTED, Finalist, Result, Trial, best_of

WORTH_MENTIONING: Final = 0.01
"""A gain below this is none."""


def conclude(
    trials: Sequence[Trial],
    finalists: Sequence[Finalist],
    warm: Trial | None,
    seconds: Mapping[str, float],
    *,
    ax_error: str | None = None,
) -> Result:
    """Returns the result.

    Args:
        trials: all of them.
        finalists: those that were timed.
        warm: the warm start with the best modelled speed.
        seconds: where the time went.
        ax_error: what ended Ax's suggestions early, if anything did.
    """
    winner = max(finalists, key=lambda f: f.speedup, default=None)
    if winner is not None and winner.speedup <= 1:
        winner = None
    gain = _gain(trials, warm)
    return Result(
        trial=None if winner is None else winner.trial,
        speedup=None if winner is None else winner.speedup,
        best_warm_start=None if warm is None else warm.index,
        gain=gain,
        remark=_remark(trials, finalists, winner, warm, gain) + ("" if ax_error is None else f" Ax failed on the way: {ax_error}"),
        seconds=dict(seconds),
    )


def _gain(trials: Sequence[Trial], warm: Trial | None) -> float | None:
    best = next(iter(best_of(trials, 1)), None)
    if best is None or warm is None or not best.tokens_per_second or not warm.tokens_per_second:
        return None
    return best.tokens_per_second / warm.tokens_per_second - 1


def _remark(trials: Sequence[Trial], finalists: Sequence[Finalist], winner: Finalist | None, warm: Trial | None, gain: float | None) -> str:
    if not finalists:
        return "Every candidate failed, so nothing was timed; the first error: " + next((t.error for t in trials if t.error), "unknown")
    if winner is None:
        best = max(f.speedup for f in finalists)
        return f"Nothing beat plain decoding: the best of {len(finalists)} finalists ran at {best:.2f} of its speed."
    source = next(t.source for t in trials if t.index == winner.trial)
    if gain is None or warm is None:
        return f"The winner is of the source {source}."
    if gain < WORTH_MENTIONING:
        suggested = sum(t.source in SUGGESTED for t in trials)
        why = "the budget or the trials were used up by then" if not suggested else f"none of {suggested} suggested candidates was better"
        return f"The search added nothing over its warm starts (the best: {warm.source}): {why}."
    return f"The search gained {gain:.1%} in modelled speed over its best warm start ({warm.source})."
