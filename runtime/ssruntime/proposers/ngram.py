"""Prompt lookup: proposes what followed the last tokens when they occurred before, in the prompt or the text.

It needs no draft engine. How many tokens are proposed, or whether any are, follows from the costs of verify
passes and from how often such lookups were right.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final, NamedTuple

from ssruntime.backends.base import Pass, StepOutput
from ssruntime.planning.planner import Planner, Speed
from ssruntime.proposal import Proposal
from ssruntime.proposers.base import SequenceView
from ssruntime.proposers.ngram_index import NgramIndex, continuation

SOURCE: Final = "ngram"
_NEGLIGIBLE: Final = 0.02
"""Survival below which no further token is considered: it is worth less than its row costs."""


class Lookup(NamedTuple):
    """What a lookup found, and what it is worth.

    Attributes:
        tokens: tokens to propose; none if no number of them is expected to pay.
        gain: expected tokens of the round, less those that its time is worth.
    """

    tokens: list[int]
    gain: float


class NgramProposer:
    """Proposes the continuation of the longest earlier occurrence of the text's end."""

    def __init__(self, planner: Planner, kind: str) -> None:
        """Takes what all requests share, and the kind of sampling."""
        self._costs = planner.costs
        self._odds = planner.lookups(kind)
        self._index = NgramIndex()
        self._found: list[int] = []
        self._length = 0
        self._speed = Speed()
        self._seconds = 0.0

    def look_up(self, ids: Sequence[int], limit: int, rate: float) -> Lookup:
        """Returns the number of tokens with the largest expected gain.

        Args:
            ids: the text.
            limit: largest number of tokens.
            rate: tokens per second that time is worth.
        """
        verify = self._costs.at(len(ids)).verify
        best, count = 1.0 - rate * verify[0], 0
        match = self._index.find(ids)
        if match is None or limit < 1:
            self._found = []
            return Lookup([], best)
        self._length, self._found = match.length, continuation(ids, match.source, limit)
        survival, expected = 1.0, 1.0
        for depth, odds in enumerate(self._odds.odds(match.length, limit), 1):
            survival *= odds
            if survival < _NEGLIGIBLE:
                break
            expected += survival
            gain = expected - rate * verify[depth]
            if gain > best:
                best, count = gain, depth
        return Lookup(self._found[:count], best)

    def propose(self, sequence: SequenceView, limit: int) -> Generator[Pass, StepOutput, Proposal]:
        """Returns up to `limit` tokens that continue the sequence; no pass is needed."""
        yield from ()
        ids = sequence.ids
        verify = self._costs.at(len(ids)).verify
        plain = 1.0 / verify[0]
        tokens, _ = self.look_up(ids, limit, max(self._speed.rate(plain), plain))
        self._seconds = verify[len(tokens)]
        return looked_up(tokens)

    def observe(self, proposed: int, accepted: int, emitted: Sequence[int]) -> None:
        """Learns from a round, whether the lookup was proposed in it or not."""
        self.learn(emitted)
        self._speed.add(len(emitted), self._seconds)

    def learn(self, emitted: Sequence[int]) -> None:
        """Learns which tokens of the last lookup were right."""
        if self._found:
            self._odds.observe(self._length, self._found, emitted)


def looked_up(tokens: list[int]) -> Proposal:
    """Returns the proposal of tokens that were looked up."""
    return Proposal(tokens, [SOURCE] * len(tokens), [None] * len(tokens))
