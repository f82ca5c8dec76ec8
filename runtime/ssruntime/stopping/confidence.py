"""Confidence exit: drafting stops after a token that the draft itself is unsure of."""

from __future__ import annotations


class ConfidenceStopping:
    """Stops below a fixed confidence."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def should_stop(self, confidence: float) -> bool:
        """Whether the confidence is below the threshold."""
        return confidence < self._threshold

    def observe(self, proposed: int, accepted: int) -> None:
        """Learns nothing."""
