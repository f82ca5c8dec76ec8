"""The policy `fixed`: every draft sequence has as many tokens as its limit allows."""

from __future__ import annotations


class FixedStopping:
    """Never ends a draft sequence before its limit."""

    def should_stop(self, confidence: float) -> bool:
        """Returns False."""
        return False

    def observe(self, proposed: int, accepted: int) -> None:
        """Does nothing: there is no threshold."""
