"""What the decode loop needs of a proposer."""

from __future__ import annotations

from typing import Protocol


class Proposer(Protocol):
    """Yields draft tokens for a sequence whose cache holds `[0, start)`."""

    def propose(self, token: int, start: int, limit: int) -> list[int]:
        """Returns up to `limit` draft tokens that may follow `token`, which stands at position `start`."""

    def observe(self, proposed: int, accepted: int) -> None:
        """Takes in how the round went."""
