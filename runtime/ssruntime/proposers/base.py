"""The interface of proposers, which give the decode loop tokens to verify."""

from __future__ import annotations

from typing import Protocol

from ssruntime.proposal import Proposal


class Proposer(Protocol):
    """Proposes tokens for a sequence whose KV cache holds positions `[0, start)`."""

    def propose(self, token: int, start: int, limit: int) -> Proposal:
        """Returns a draft sequence, with alternatives, that continues `token`.

        Args:
            token: last committed token.
            start: position of that token.
            limit: largest number of tokens in the draft sequence.
        """

    def observe(self, proposed: int, accepted: int) -> None:
        """Records how many tokens of a round's draft sequence were proposed and accepted.

        Alternatives do not count.
        """
