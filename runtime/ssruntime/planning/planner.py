"""Decides, from costs and acceptance probabilities, how long a request drafts, and whether it drafts at all.

A round that is expected to lose against autoregressive decoding is not run, with one exception: without
drafting nothing is learned of the draft. So a small part of the time, `EXPLORING`, goes to rounds of one
draft token that are expected to lose, and to autoregressive steps where drafting has paid for long: one kind
of round alone does not show what the other costs by now.
"""

from __future__ import annotations

import math
from typing import Final

from ssruntime.planning.acceptance import UNKNOWN, AcceptanceModel, Calibration, Evidence, RequestAcceptance
from ssruntime.planning.batch_costs import BatchCosts
from ssruntime.planning.costs import nominal_costs
from ssruntime.planning.live import BUCKET
from ssruntime.planning.lookup_acceptance import LookupAcceptance, RequestLookups
from ssruntime.planning.survival import NEVER, DraftPlan, best_plan, shared_plan

EXPLORING: Final = 0.005
"""Most of the time that goes to rounds that are expected to lose, as a fraction."""
_MOST_CREDIT: Final = 3.0
"""Largest time that may be saved up for exploring, in autoregressive steps."""
_SHIFT_STEP: Final = 0.5
"""Shifts are rounded to multiples of this for planning, in nats."""
_RATE_STEP: Final = 0.1
"""Logarithms of rates are rounded to multiples of this for planning."""
_EXTRA_STEP: Final = 0.05
_MOST_PLANS: Final = 512
_SPEED_MEMORY: Final = 0.97
"""Factor by which earlier rounds of a request decay in its speed with each round."""
_FIRST_TOKENS: Final = 8.0
"""Number of tokens that the expected speed counts for in a request's own speed."""


class Planner:
    """What all requests of an engine share: costs, acceptance probabilities, and the plans made from them.

    Attributes:
        costs: costs of the passes.
    """

    def __init__(self, costs: BatchCosts, calibration: Calibration, *, learns: bool) -> None:
        """Takes the costs, the draft's calibration, and whether to learn from requests."""
        self.costs = costs
        self._calibration = calibration
        self._learns = learns
        self._models: dict[str, AcceptanceModel] = {}
        self._lookups: dict[str, LookupAcceptance] = {}
        self._plans: dict[tuple[object, ...], DraftPlan] = {}
        self._credit = 0.0

    @property
    def recorder(self) -> BatchCosts | None:
        """The costs that rounds are recorded in; None if this planner does not learn."""
        return self.costs if self._learns else None

    def model(self, kind: str) -> AcceptanceModel:
        """Returns the acceptance model for a kind of sampling; each kind learns for itself."""
        found = self._models.get(kind)
        if found is None:
            # Of two threads, one wins.
            found = self._models.setdefault(kind, AcceptanceModel(self._calibration, learns=self._learns))
        return found

    def lookups(self, kind: str) -> RequestLookups:
        """Returns the acceptance probabilities of lookups for a new request with a kind of sampling."""
        found = self._lookups.get(kind)
        if found is None:
            found = self._lookups.setdefault(kind, LookupAcceptance(learns=self._learns))
        return RequestLookups(found)

    def plan(self, model: AcceptanceModel, context: int, shift: float, most: int, rate: float | None = None) -> DraftPlan:
        """Returns the best policy for a round.

        Args:
            model: acceptance model.
            context: number of tokens before the round.
            shift: offset of the request's log-odds of acceptance, in nats.
            most: largest number of draft tokens.
            rate: tokens per second that time is worth; None for those of the best policy.
        """
        if self.costs.is_shared:  # sequences that share passes draft alike
            context, step = self.costs.context, 0
        else:
            step = round(shift / _SHIFT_STEP)
        worth = None if rate is None else round(math.log(rate) / _RATE_STEP)
        key = (id(model), model.version, self.costs.version, context // BUCKET, step, most, worth, round(model.extra / _EXTRA_STEP))
        found = self._plans.get(key)
        if found is None:
            rate = None if worth is None else math.exp(worth * _RATE_STEP)
            make = shared_plan if self.costs.is_shared else best_plan
            found = make(self.costs.at(context), model.typical_probabilities(step * _SHIFT_STEP), most, rate=rate, extra=model.extra)
            if len(self._plans) >= _MOST_PLANS:
                self._plans = {}
            self._plans[key] = found
        return found

    def limit(self, model: AcceptanceModel, context: int, most: int) -> int:
        """Returns the most tokens that a sequence may propose at all, from whatever source.

        A longer proposal than those of the sequences that share its passes would make all of them wait.
        """
        if not self.costs.is_shared:
            return most
        return sum(threshold <= 1.0 for threshold in self.plan(model, context, 0.0, most).thresholds)

    def may_explore(self, context: int) -> bool:
        """Returns whether there is time for a draft token that is expected to lose, and spends it."""
        if self.costs.is_shared:  # all others would pay
            return False
        costs = self.costs.at(context)
        return self._spend(costs.seconds(2, 1) / costs.seconds(1, 0) - 1.0)

    def may_step(self, context: int, rate: float) -> bool:
        """Returns whether an autoregressive step is due although drafting pays, and spends its price.

        Args:
            context: number of tokens before the round.
            rate: tokens per second expected of drafting.
        """
        return not self.costs.is_shared and self.costs.is_stale and self._spend(rate * self.costs.at(context).seconds(1, 0) - 1.0)

    def _spend(self, price: float) -> bool:
        """Spends a price in autoregressive steps if enough is saved; what costs most may leave a debt."""
        if self._credit < min(price, _MOST_CREDIT):
            return False
        self._credit -= price
        return True

    def earn(self, tokens: int) -> None:
        """Earns time for exploring: a fraction of that of `tokens` autoregressive steps."""
        self._credit = min(self._credit + EXPLORING * tokens, _MOST_CREDIT)


def unlearned(draft_share: float = 0.0, calibration: Calibration = UNKNOWN) -> Planner:
    """Returns a planner that depends on no machine and learns nothing.

    Args:
        draft_share: cost of a draft step, as a fraction of an autoregressive step.
        calibration: regression of the draft.
    """
    return Planner(BatchCosts(nominal_costs(draft_share), learns=False), calibration, learns=False)


class Speed:
    """The speed of one request, by the costs of its passes."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Adds a round."""
        self._tokens = _SPEED_MEMORY * self._tokens + tokens
        self._seconds = _SPEED_MEMORY * self._seconds + seconds

    def rate(self, expected: float) -> float:
        """Returns tokens per second, given what was expected of the request."""
        return (self._tokens + _FIRST_TOKENS) / (self._seconds + _FIRST_TOKENS / expected)


class RequestPlanner:
    """Plans the rounds of one request.

    Attributes:
        costs: costs of the passes.
        rate: tokens per second that time is worth; None for those of the best policy for drafting.
    """

    def __init__(self, planner: Planner, kind: str, max_draft: int) -> None:
        """Takes what all requests share, the kind of sampling, and the largest number of draft tokens."""
        self.costs = planner.costs
        self.rate: float | None = None
        self._planner = planner
        self._model = planner.model(kind)
        self._acceptance = RequestAcceptance(self._model)
        self._max_draft = max_draft
        self._thresholds: tuple[float, ...] = ()
        self._survival = 1.0

    def plan(self, context: int) -> DraftPlan:
        """Returns the best policy for a round."""
        return self._planner.plan(self._model, context, self._acceptance.shift, self._max_draft, self.rate)

    def usual_rate(self, context: int) -> float:
        """Returns the tokens per second expected of drafting, or of not drafting if that is faster."""
        return self._planner.plan(self._model, context, self._acceptance.shift, self._max_draft).rate

    def begin(self, context: int, limit: int) -> bool:
        """Begins a round; returns whether to draft at all."""
        self._survival = 1.0
        self._acceptance.begin()
        plan = self.plan(context)
        self._thresholds = plan.thresholds
        if self._thresholds[0] <= 1.0:
            return not self._planner.may_step(context, plan.rate)
        if limit and self._planner.may_explore(context):
            self._thresholds = (0.0, NEVER)
            return True
        return False

    def goes_on(self, depth: int, evidence: Evidence) -> bool:
        """Returns whether to draft another token after `depth` tokens, of which this is the last one."""
        self._survival *= self._acceptance.add(evidence)
        return depth < len(self._thresholds) and self._survival >= self._thresholds[depth]

    def observe(self, accepted: int, emitted: int) -> None:
        """Learns from a round."""
        self._acceptance.observe(accepted, emitted)
        self._planner.earn(emitted)
