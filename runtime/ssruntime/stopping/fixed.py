"""Fixed drafts: always as many tokens as the limit allows."""

from __future__ import annotations


class FixedStopping:
    """Never stops a draft early."""

    def should_stop(self, confidence: float) -> bool:
        """Returns False."""
        return False

    def observe(self, proposed: int, accepted: int) -> None:
        """Learns nothing."""
