"""The exit `optimal`: drafts as long as some longer draft is expected to give more tokens per second."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssruntime.planning.planner import Planner, RequestPlanner
from ssruntime.stopping.base import StoppingRule


@dataclass(frozen=True, kw_only=True)
class OptimalRule(StoppingRule):
    """Drafts as long as another token is expected to give more tokens per second.

    It weighs the costs of passes on this machine against each token's acceptance probability.

    It does not draft where no draft is expected to pay.
    """

    exit: str = field(default="optimal", init=False)
    uses_costs = True

    def policy(self, planner: Planner, kind: str) -> OptimalStopping:
        """Returns a new policy for one request."""
        return OptimalStopping(RequestPlanner(planner, kind, self.max_draft))


class OptimalStopping:
    """Follows the plan of each round."""

    def __init__(self, planner: RequestPlanner) -> None:
        self.begin = planner.begin
        self.goes_on = planner.goes_on
        self._planner = planner

    def observe(self, proposed: int, accepted: int, emitted: int) -> None:
        """Learns from a round."""
        self._planner.observe(accepted, emitted)
