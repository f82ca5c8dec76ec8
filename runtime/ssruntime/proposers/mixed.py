"""The proposer of mode `auto`: looks tokens up where that is expected to pay more than drafting them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final

from ssruntime.backends.base import Pass, StepOutput
from ssruntime.planning.planner import RequestPlanner, Speed
from ssruntime.proposal import Proposal
from ssruntime.proposers.base import SequenceView
from ssruntime.proposers.lookup import TextLookup
from ssruntime.proposers.skip import SkipProposer

_REFRESHED: Final = 8
"""Number of rounds after which the usual speed is looked up again."""


class MixedProposer:
    """Chooses in each round between a lookup, a draft and neither, by what each is expected to gain."""

    def __init__(self, lookup: TextLookup, draft: SkipProposer, planner: RequestPlanner) -> None:
        """Takes the lookups and the draft of the request, and the planner that the draft follows."""
        self._lookup = lookup
        self._draft = draft
        self._planner = planner
        self._speed = Speed()
        self._is_draft = False
        self._context = self._rounds = 0
        self._usual_rate = 1.0

    def propose(self, sequence: SequenceView, limit: int) -> Generator[Pass, StepOutput, Proposal]:
        """Returns up to `limit` tokens that continue the sequence."""
        ids = sequence.ids
        self._context = context = len(ids)
        planner = self._planner
        if self._rounds % _REFRESHED == 0:
            self._usual_rate = planner.usual_rate(context)
        self._rounds += 1
        # Time is never worth less than without drafting.
        planner.rate = rate = max(self._speed.rate(self._usual_rate), 1.0 / planner.costs.at(context).verify[0])
        found = self._lookup.look_up(ids, limit, rate)
        self._is_draft = not found.tokens or planner.plan(context).gain > found.gain
        if self._is_draft:
            return (yield from self._draft.propose(sequence, limit))
        return found.proposal()

    def observe(self, proposed: int, accepted: int, emitted: Sequence[int]) -> None:
        """Learns from a round."""
        self._lookup.learn(emitted)
        if self._is_draft:
            self._draft.observe(proposed, accepted, emitted)
        costs = self._planner.costs.at(self._context)
        self._speed.add(len(emitted), costs.seconds(proposed + 1, proposed if self._is_draft else 0))
