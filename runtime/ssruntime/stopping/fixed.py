"""The policy `fixed`: every draft sequence has as many tokens as its limit allows."""

from __future__ import annotations


class FixedStopping:
    """Never ends a draft sequence before its limit."""

    def goes_on(self, depth: int, confidence: float, context: int) -> bool:
        """Returns True."""
        return True

    def observe(self, proposed: int, accepted: int) -> None:
        """Does nothing: there is no threshold."""
