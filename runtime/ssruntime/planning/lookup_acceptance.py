"""The probability that a token from a lookup is accepted, by length of the match and depth in the proposal.

It is counted for every lookup, whether its tokens were proposed or not: the tokens that the round emits show
which of them would have been accepted. So learning costs no rounds.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

_LENGTHS: Final = (3, 4, 6, 10)
"""Lengths at which a new class of matches begins; shorter ones are the first class."""
_DEPTHS: Final = (1, 2, 4)
"""Depths at which a new class of tokens begins."""
_PRIOR: Final = (
    (0.40, 0.60, 0.65, 0.75),
    (0.50, 0.65, 0.70, 0.80),
    (0.60, 0.70, 0.75, 0.80),
    (0.70, 0.75, 0.80, 0.85),
    (0.80, 0.85, 0.90, 0.90),
)
"""Prior acceptance probabilities, rounded from recorded texts of mathematics and code: a row for each class
of lengths, with a column for each class of depths."""
_WEIGHT_OF_PRIOR: Final = 12.0
"""Number of tokens that the prior counts for in the shared counts."""
_WEIGHT_OF_SHARED: Final = 6.0
"""Number of tokens that the shared counts count for in those of a request."""
_MEMORY: Final = 0.995
"""Factor by which a shared count decays with each token that is added to it."""

Counts = list[list[float]]
"""Number of tokens, or of accepted tokens, by class of length and of depth."""


def length_class(length: int) -> int:
    """Returns the class of a match of this many tokens."""
    return sum(length >= bound for bound in _LENGTHS)


def _zeros() -> Counts:
    return [[0.0] * (len(_DEPTHS) + 1) for _ in range(len(_LENGTHS) + 1)]


_CLASS_OF_DEPTH: Final = tuple(sum(depth >= bound for bound in _DEPTHS) for depth in range(16))


class LookupAcceptance:
    """The counts that all requests of an engine share. They hold no text."""

    def __init__(self, *, learns: bool) -> None:
        self._learns = learns
        self._tokens, self._accepted = _zeros(), _zeros()
        self._lock = threading.Lock()

    def probability(self, length: int, depth: int) -> float:
        """Returns the acceptance probability for a class of lengths and a class of depths."""
        accepted = self._accepted[length][depth] + _WEIGHT_OF_PRIOR * _PRIOR[length][depth]
        return accepted / (self._tokens[length][depth] + _WEIGHT_OF_PRIOR)

    def record(self, length: int, depth: int, *, accepted: bool) -> None:
        """Counts a token."""
        if not self._learns:
            return
        with self._lock:
            self._tokens[length][depth] = _MEMORY * self._tokens[length][depth] + 1.0
            self._accepted[length][depth] = _MEMORY * self._accepted[length][depth] + accepted


class RequestLookups:
    """The acceptance probabilities in one request: from its own counts, with the shared ones as a prior."""

    def __init__(self, shared: LookupAcceptance) -> None:
        self._shared = shared
        self._tokens, self._accepted = _zeros(), _zeros()

    def probabilities(self, length: int, count: int) -> list[float]:
        """Returns the probability of each token to be accepted, given that those before it are.

        Args:
            length: number of tokens that match.
            count: number of tokens looked up.
        """
        row = length_class(length)
        classes = [self._probability(row, depth) for depth in range(len(_DEPTHS) + 1)]
        return [classes[_CLASS_OF_DEPTH[depth]] for depth in range(count)]

    def _probability(self, length: int, depth: int) -> float:
        accepted = self._accepted[length][depth] + _WEIGHT_OF_SHARED * self._shared.probability(length, depth)
        return accepted / (self._tokens[length][depth] + _WEIGHT_OF_SHARED)

    def observe(self, length: int, found: Sequence[int], emitted: Sequence[int]) -> None:
        """Learns which tokens of a lookup, proposed or not, are those that the round emitted."""
        row = length_class(length)
        for depth, (token, right) in enumerate(zip(found, emitted, strict=False)):
            accepted, place = token == right, _CLASS_OF_DEPTH[depth]
            self._tokens[row][place] += 1.0
            self._accepted[row][place] += accepted
            self._shared.record(row, place, accepted=accepted)
            if not accepted:
                return
