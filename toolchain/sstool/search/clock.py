"""A search's time: what is left of its budget, and where it went."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Begins when it is made."""

    def __init__(self, budget: float) -> None:
        """Takes the budget in seconds; infinite for no end."""
        self._begun = time.perf_counter()
        self._budget = budget
        self._parts: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the block's time under a name."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - begun

    def elapsed(self) -> float:
        """Returns seconds since the beginning."""
        return time.perf_counter() - self._begun

    def left(self) -> float:
        """Returns seconds left, below 0 when the budget is spent."""
        return self._budget - self.elapsed()

    def affords(self, seconds: float, share: float) -> bool:
        """Whether something takes no more than a share of the whole budget."""
        return seconds <= share * self._budget

    def parts(self) -> dict[str, float]:
        """Returns the seconds by name, and `total`."""
        return {**{name: round(seconds, 3) for name, seconds in self._parts.items()}, "total": round(self.elapsed(), 3)}
