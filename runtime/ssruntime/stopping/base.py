"""The interface of stopping policies, which end draft sequences."""

from __future__ import annotations

from typing import Protocol


class StoppingPolicy(Protocol):
    """Decides after each drafted token whether to draft another one."""

    def should_stop(self, confidence: float) -> bool:
        """Returns whether to stop after a token with this draft confidence; that token is still verified."""

    def observe(self, proposed: int, accepted: int) -> None:
        """Records how many tokens of a round's draft sequence were proposed and accepted.

        Alternatives do not count.
        """
