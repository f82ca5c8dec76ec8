"""A fake time that changes only when a test changes it."""

from __future__ import annotations


class FakeTime:
    """Replaces the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        """Returns the time in seconds."""
        return self.now

    def passes(self, seconds: float) -> None:
        """Moves the time forward."""
        self.now += seconds
