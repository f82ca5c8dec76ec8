"""The interface of stopping policies, which end draft sequences."""

from __future__ import annotations

from typing import Protocol


class StoppingPolicy(Protocol):
    """Decides before the first and after each drafted token whether to draft another one."""

    def goes_on(self, depth: int, confidence: float, context: int) -> bool:
        """Returns whether to draft another token; the tokens that were drafted are verified in any case.

        Args:
            depth: number of tokens drafted in this round; 0 asks whether to draft at all.
            confidence: draft confidence of the last one; 1 at depth 0.
            context: number of tokens before the one to be drafted.
        """

    def observe(self, proposed: int, accepted: int) -> None:
        """Records how many tokens of a round's draft sequence were proposed and accepted.

        Alternatives do not count.
        """
