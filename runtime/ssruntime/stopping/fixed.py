"""The policy `fixed`: every draft sequence has as many tokens as its limit allows."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssruntime.stopping.base import StoppingRule


@dataclass(frozen=True, kw_only=True)
class FixedRule(StoppingRule):
    """Drafts `max_draft` tokens in every round."""

    exit: str = field(default="fixed", init=False)

    def policy(self) -> FixedStopping:
        """Returns a new policy for one request."""
        return FixedStopping()


class FixedStopping:
    """Never ends a draft sequence before its limit."""

    def goes_on(self, depth: int, confidence: float, context: int) -> bool:
        """Returns True."""
        return True

    def observe(self, proposed: int, accepted: int) -> None:
        """Does nothing: there is no threshold."""
