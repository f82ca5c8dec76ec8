"""The policy `confidence`: drafting stops after a token whose draft confidence is below a fixed threshold."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssruntime.checks import check_float
from ssruntime.stopping.base import DEFAULT_EXIT_THRESHOLD, EXIT_THRESHOLD, StoppingRule


@dataclass(frozen=True, kw_only=True)
class ConfidenceRule(StoppingRule):
    """Drafts until a token's draft confidence is below `exit_threshold`, a number in [0, 1]."""

    exit: str = field(default="confidence", init=False)
    exit_threshold: float = DEFAULT_EXIT_THRESHOLD

    def __post_init__(self) -> None:
        """Checks the settings; raises ConfigError."""
        super().__post_init__()
        check_float(EXIT_THRESHOLD, self.exit_threshold, 0.0, 1.0)

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
