"""The policy `fixed`: every draft sequence has as many tokens as its limit allows."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssruntime.planning.acceptance import Evidence
from ssruntime.planning.planner import Planner
from ssruntime.stopping.base import StoppingRule


@dataclass(frozen=True, kw_only=True)
class FixedRule(StoppingRule):
    """Drafts `max_draft` tokens in every round."""

    exit: str = field(default="fixed", init=False)

    def policy(self, planner: Planner, kind: str) -> FixedStopping:
        """Returns a new policy for one request."""
        return FixedStopping()


class FixedStopping:
    """Never ends a draft sequence before its limit."""

    def begin(self, context: int, limit: int) -> bool:
        """Returns True."""
        return True

    def goes_on(self, depth: int, evidence: Evidence) -> bool:
        """Returns True."""
        return True

    def observe(self, proposed: int, accepted: int, emitted: int) -> None:
        """Does nothing: there is no threshold."""
