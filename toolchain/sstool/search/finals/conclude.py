"""The conclusion of a search: the finalist that won, if any, and the gain over the warm starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sstool.search.finals.finalists import WORTH
from sstool.search.log.records import SUGGESTED, Finalist, Result, Trial, best_of

WORTH_MENTIONING: Final = 0.01
"""Smallest relative gain that counts as a gain."""


def conclude(
    trials: Sequence[Trial],
    finalists: Sequence[Finalist],
    warm: Trial | None,
    seconds: Mapping[str, float],
    *,
    ax_error: str | None = None,
) -> Result:
    """Returns the result of a search.

    A finalist wins if it is the fastest and beats autoregressive decoding (mode `plain`). One with own
    weights must be worth their memory.

    Args:
        trials: all trials.
        finalists: finalists that were timed.
        warm: warm start with the best modelled speed; None if no warm start completed.
        seconds: seconds of each part of the search.
        ax_error: error that ended Ax's suggestions early; None if there was none.
    """
    own = {trial.index for trial in trials if trial.int4}
    faster = [finalist for finalist in finalists if finalist.speedup > 1]
    winner = max(faster, key=lambda f: f.speedup / (WORTH if f.trial in own else 1.0), default=None)
    gain = _gain(trials, warm)
    return Result(
        trial=None if winner is None else winner.trial,
        speedup=None if winner is None else winner.speedup,
        by_kind={} if winner is None else winner.by_kind,
        best_warm_start=None if warm is None else warm.index,
        gain=gain,
        remark=_remark(trials, finalists, winner, warm, gain) + ("" if ax_error is None else f" Ax failed during the search: {ax_error}"),
        seconds=dict(seconds),
    )


def _gain(trials: Sequence[Trial], warm: Trial | None) -> float | None:
    """Returns the best trial's modelled speed over the best warm start's, minus 1; None if one is missing."""
    best = next(iter(best_of(trials, 1)), None)
    if best is None or warm is None or not best.tokens_per_second or not warm.tokens_per_second:
        return None
    return best.tokens_per_second / warm.tokens_per_second - 1


def _remark(trials: Sequence[Trial], finalists: Sequence[Finalist], winner: Finalist | None, warm: Trial | None, gain: float | None) -> str:
    """Returns the conclusion in words."""
    if not finalists:
        return "Every candidate failed, so no finalist was timed. The first error: " + next((t.error for t in trials if t.error), "unknown")
    if winner is None:
        best = max(f.speedup for f in finalists)
        return f"No draft beat autoregressive decoding: the fastest of {len(finalists)} finalists ran at {best:.2f} times its speed."
    source = next(t.source for t in trials if t.index == winner.trial)
    if gain is None or warm is None:
        return f"The winner came from the source {source}."
    if gain < WORTH_MENTIONING:
        suggested = sum(t.source in SUGGESTED for t in trials)
        why = "no suggested candidate was tried" if not suggested else f"none of {suggested} suggested candidates was better"
        return f"The search gained nothing over its warm starts (best source: {warm.source}): {why}."
    return f"The search gained {gain:.1%} in modelled speed over its best warm start ({warm.source})."
