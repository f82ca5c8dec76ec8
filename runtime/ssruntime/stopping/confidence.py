"""The policy `confidence`: drafting stops after a token whose draft confidence is below a fixed threshold."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssruntime.stopping.base import ThresholdRule


@dataclass(frozen=True, kw_only=True)
class ConfidenceRule(ThresholdRule):
    """Drafts until a token's draft confidence is below `exit_threshold`."""

    exit: str = field(default="confidence", init=False)

    def policy(self) -> ConfidenceStopping:
        """Returns a new policy for one request."""
        return ConfidenceStopping(self.exit_threshold)


class ConfidenceStopping:
    """Stops below a fixed confidence threshold."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def goes_on(self, depth: int, confidence: float, context: int) -> bool:
        """Returns whether the confidence reaches the threshold; True at depth 0."""
        return depth == 0 or confidence >= self._threshold

    def observe(self, proposed: int, accepted: int) -> None:
        """Does nothing: the threshold is fixed."""
