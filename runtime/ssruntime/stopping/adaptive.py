"""The adaptive exit of Draft & Verify: the confidence threshold follows how much of the drafts is accepted.

Source: Zhang et al., arXiv 2309.08168, section 3.3 and its released code. After every verify, with smoothed
acceptance m and threshold t:

    m  <- beta1 * m + (1 - beta1) * accepted / proposed
    t' <- t + step if m < target;  t if proposed == max_draft;  else t - step
    t  <- beta2 * t + (1 - beta2) * t'
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ssruntime.planning.acceptance import Evidence
from ssruntime.planning.planner import Planner
from ssruntime.stopping.base import ThresholdRule

ACCEPTANCE_MEMORY: Final = 0.5
"""beta1: how much of the smoothed acceptance stays."""
THRESHOLD_MEMORY: Final = 0.9
"""beta2: how much of the threshold stays."""
STEP: Final = 0.01
"""epsilon: how far the threshold is moved before smoothing."""
TARGET_ACCEPTANCE: Final = 0.9
"""alpha: below it the threshold rises, so drafts get shorter."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveRule(ThresholdRule):
    """Drafts until a token's draft confidence is below a threshold, which is `exit_threshold` at first."""

    exit: str = field(default="adaptive", init=False)

    def policy(self, planner: Planner, kind: str) -> AdaptiveStopping:
        """Returns a new policy for one request."""
        return AdaptiveStopping(self.exit_threshold, max_draft=self.max_draft)


class AdaptiveStopping:
    """Stops below a threshold that rises while acceptance is poor and falls while it is good."""

    def __init__(self, threshold: float, *, max_draft: int) -> None:
        self.threshold = threshold
        self._max_draft = max_draft
        self._acceptance: float | None = None

    def begin(self, context: int, limit: int) -> bool:
        """Returns True: one token is drafted in any case."""
        return True

    def goes_on(self, depth: int, evidence: Evidence) -> bool:
        """Returns whether the confidence reaches the present threshold."""
        return evidence.confidence >= self.threshold

    def observe(self, proposed: int, accepted: int, emitted: int) -> None:
        """Moves the threshold; a round that proposed nothing moves nothing."""
        if proposed == 0:
            return
        rate = accepted / proposed
        # The smoothing starts at the first round's own rate: there is nothing before it to remember.
        previous = rate if self._acceptance is None else self._acceptance
        self._acceptance = ACCEPTANCE_MEMORY * previous + (1 - ACCEPTANCE_MEMORY) * rate
        if self._acceptance < TARGET_ACCEPTANCE:
            moved = self.threshold + STEP
        elif proposed == self._max_draft:
            moved = self.threshold
        else:
            moved = self.threshold - STEP
        smoothed = THRESHOLD_MEMORY * self.threshold + (1 - THRESHOLD_MEMORY) * moved
        self.threshold = min(1.0, max(0.0, smoothed))
