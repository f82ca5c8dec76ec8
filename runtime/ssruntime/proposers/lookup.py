"""Lookups in the text: what followed its last tokens when they occurred before, and how much to propose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ssruntime.planning.planner import Planner
from ssruntime.proposal import Proposal
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

    def proposal(self) -> Proposal:
        """Returns the proposal of these tokens."""
        count = len(self.tokens)
        return Proposal(self.tokens, [SOURCE] * count, [None] * count)


class TextLookup:
    """Looks up the text of one request, and learns how often that is right."""

    def __init__(self, planner: Planner, kind: str, max_draft: int) -> None:
        """Takes what all requests share, the kind of sampling, and the most tokens to propose."""
        self._planner, self._model = planner, planner.model(kind)
        self._max_draft = max_draft
        self._costs = planner.costs
        self._acceptance = planner.lookups(kind)
        self._index = NgramIndex()
        self._found: list[int] = []
        self._length = 0

    def look_up(self, ids: Sequence[int], limit: int, rate: float) -> Lookup:
        """Returns the number of tokens with the largest expected gain.

        Args:
            ids: the text.
            limit: largest number of tokens.
            rate: tokens per second that time is worth.
        """
        limit = min(limit, self._planner.limit(self._model, len(ids), self._max_draft))
        verify = self._costs.at(len(ids)).verify
        best, count = 1.0 - rate * verify[0], 0
        match = self._index.find(ids)
        if match is None or limit < 1:
            self._found = []
            return Lookup([], best)
        self._length, self._found = match.length, continuation(ids, match.source, limit)
        survival, expected = 1.0, 1.0
        for depth, probability in enumerate(self._acceptance.probabilities(match.length, limit), 1):
            survival *= probability
            if survival < _NEGLIGIBLE:
                break
            expected += survival
            gain = expected - rate * verify[depth]
            if gain > best:
                best, count = gain, depth
        return Lookup(self._found[:count], best)

    def learn(self, emitted: Sequence[int]) -> None:
        """Learns from the tokens of a round which ones of the last lookup were right, proposed or not."""
        if self._found:
            self._acceptance.observe(self._length, self._found, emitted)
