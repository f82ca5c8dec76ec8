"""What the decode loop needs of a proposer."""

from __future__ import annotations

from typing import Protocol

from ssruntime.proposal import Proposal


class Proposer(Protocol):
    """Yields draft tokens for a sequence whose cache holds `[0, start)`."""

    def propose(self, token: int, start: int, limit: int) -> Proposal:
        """Returns a chain of up to `limit` tokens that may follow `token`, which stands at position `start`, with its alternatives."""

    def observe(self, proposed: int, accepted: int) -> None:
        """Takes in how many tokens of the chain were proposed and accepted in a round."""
