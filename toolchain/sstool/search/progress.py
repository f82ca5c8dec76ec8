"""How far a search is, and the one line that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a search is.

    Attributes:
        part: what is being done.
        done: how much of that.
        total: of how much.
        best: modelled speed-up of the best candidate so far.
        seconds_left: of the budget; infinite where there is none.
    """

    part: str
    done: int
    total: int
    best: float | None
    seconds_left: float


def describe_progress(progress: Progress) -> str:
    """Returns a search's progress as one line."""
    parts = [f"{progress.part} {progress.done} of {progress.total}" if progress.total > 1 else progress.part]
    if progress.best is not None:
        parts.append(f"best so far {progress.best:.2f} x plain")
    if math.isfinite(progress.seconds_left):
        left = max(0, round(progress.seconds_left))
        parts.append(f"{left // 60}:{left % 60:02d} left")
    return ", ".join(parts)
