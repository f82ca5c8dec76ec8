"""The clock of a search: the time left of its budget, and the time that each part took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """A clock that starts when it is created."""

    def __init__(self, budget: float) -> None:
        """Starts the clock; the budget is in seconds, infinite for no limit."""
        self._begun = time.perf_counter()
        self._budget = budget
        self._parts: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Returns a context manager that adds the time of its block to a named part."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - begun

    def elapsed(self) -> float:
        """Returns the seconds since the start."""
        return time.perf_counter() - self._begun

    def left(self) -> float:
        """Returns the seconds left of the budget; negative once it is used up."""
        return self._budget - self.elapsed()

    def affords(self, seconds: float, share: float) -> bool:
        """Returns whether a duration is at most a share of the whole budget."""
        return seconds <= share * self._budget

    def parts(self) -> dict[str, float]:
        """Returns the seconds of each part by name, and those since the start as `total`."""
        return {**{name: round(seconds, 3) for name, seconds in self._parts.items()}, "total": round(self.elapsed(), 3)}
