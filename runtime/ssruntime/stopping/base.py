"""What the proposer and the decode loop need of an exit policy."""

from __future__ import annotations

from typing import Protocol


class StoppingPolicy(Protocol):
    """Decides after each drafted token whether drafting goes on."""

    def should_stop(self, confidence: float) -> bool:
        """Whether to stop after a token of this draft confidence; that token is still verified."""

    def observe(self, proposed: int, accepted: int) -> None:
        """Takes in how many tokens of a round's chain were proposed and accepted."""
