"""Prompt lookup: proposes what followed the last tokens when they occurred before, in the prompt or the text.

It needs no draft engine. How many tokens are proposed, or whether any are, follows from the costs of verify
passes and from how often such lookups were right.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from ssruntime.backends.base import Pass, StepOutput
from ssruntime.planning.batch_costs import BatchCosts
from ssruntime.planning.planner import Speed
from ssruntime.proposal import Proposal
from ssruntime.proposers.base import SequenceView
from ssruntime.proposers.lookup import TextLookup


class NgramProposer:
    """Proposes the continuation of the longest earlier occurrence of the text's end."""

    def __init__(self, lookup: TextLookup, costs: BatchCosts) -> None:
        """Takes the lookups of the request, and the costs of passes."""
        self._lookup = lookup
        self._costs = costs
        self._speed = Speed()
        self._seconds = 0.0

    def propose(self, sequence: SequenceView, limit: int) -> Generator[Pass, StepOutput, Proposal]:
        """Returns up to `limit` tokens that continue the sequence; no pass is needed."""
        yield from ()
        ids = sequence.ids
        verify = self._costs.at(len(ids)).verify
        plain = 1.0 / verify[0]
        found = self._lookup.look_up(ids, limit, max(self._speed.rate(plain), plain))
        self._seconds = verify[len(found.tokens)]
        return found.proposal()

    def observe(self, proposed: int, accepted: int, emitted: Sequence[int]) -> None:
        """Learns from a round, whether the lookup was proposed in it or not."""
        self._lookup.learn(emitted)
        self._speed.add(len(emitted), self._seconds)
