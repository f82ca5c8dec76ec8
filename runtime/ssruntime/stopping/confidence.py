"""The policy `confidence`: drafting stops after a token whose draft confidence is below a fixed threshold."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssruntime.planning.acceptance import Evidence
from ssruntime.planning.planner import Planner
from ssruntime.stopping.base import ThresholdRule


@dataclass(frozen=True, kw_only=True)
class ConfidenceRule(ThresholdRule):
    """Drafts until a token's draft confidence is below `exit_threshold`."""

    exit: str = field(default="confidence", init=False)

    def policy(self, planner: Planner, kind: str) -> ConfidenceStopping:
        """Returns a new policy for one request."""
        return ConfidenceStopping(self.exit_threshold)


class ConfidenceStopping:
    """Stops below a fixed confidence threshold."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def begin(self, context: int, limit: int) -> bool:
        """Returns True: one token is drafted in any case."""
        return True

    def goes_on(self, depth: int, evidence: Evidence) -> bool:
        """Returns whether the confidence reaches the threshold."""
        return evidence.confidence >= self._threshold

    def observe(self, proposed: int, accepted: int, emitted: int) -> None:
        """Does nothing: the threshold is fixed."""
