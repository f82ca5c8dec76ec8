"""The progress of a search, as a record and as one line of text."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a search.

    Attributes:
        part: description of the current part.
        done: units of the part that are done.
        total: units of the part in all.
        best: modelled speed-up of the best candidate so far; None before the first one.
        seconds_left: seconds left of the budget; infinite without a budget.
    """

    part: str
    done: int
    total: int
    best: float | None
    seconds_left: float


def describe_progress(progress: Progress) -> str:
    """Returns the progress as one line of text."""
    parts = [f"{progress.part} {progress.done} of {progress.total}" if progress.total > 1 else progress.part]
    if progress.best is not None:
        parts.append(f"best modelled speed-up {progress.best:.2f}")
    if math.isfinite(progress.seconds_left):
        left = max(0, round(progress.seconds_left))
        parts.append(f"{left // 60}:{left % 60:02d} left")
    return ", ".join(parts)
