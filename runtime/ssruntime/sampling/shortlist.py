"""A coupled pick from a row's best tokens alone, which says whether it surely is the pick of the whole row.

`filtered` and the noise over what it leaves are the definition; they take some twenty array operations. After a pass of an engine, which
leaves nothing of numpy in the processor's caches, each costs 5 to 15 us, and this one loop over Python numbers as much as two of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from ssruntime.proposal import ALTERNATIVE_GAP
from ssruntime.sampling.filters import FilterSettings, scale_of
from ssruntime.sampling.noise import CoupledNoise

_MARGIN: Final = 1e-5
"""Far above the rounding of weights, of their sums and of a probability in fp32, relative to them."""
_LEAD: Final = 1e-4
"""How far ahead, relative to its key, a token must be of the next for rounding not to change their order."""


_GAP_FACTOR: Final = math.exp(ALTERNATIVE_GAP)


class Pick(NamedTuple):
    """A token, and whether the filters and the noise over the whole row surely give it."""

    token: int
    is_sure: bool


class Shortlist:
    """Picks for one request's settings and noise."""

    def __init__(self, settings: FilterSettings, noise: CoupledNoise) -> None:
        self._noise = noise
        self._scale = scale_of(settings)
        self._top_k = settings.top_k
        self._top_p = settings.top_p
        self._min_p = settings.min_p

    @staticmethod
    def helps(settings: FilterSettings) -> bool:
        """Whether there are picks of which it can be sure.

        Without filters the lightest token of the vocabulary may win. A temperature above 1 may lift any number of tokens out of a tail
        of which nothing is known but its sum at temperature 1.
        """
        return settings.temperature <= 1.0 and (settings.top_p < 1.0 or settings.top_k > 0 or settings.min_p > 0.0)

    def pick(self, tokens: Sequence[int], logits: Sequence[float], confidence: float, position: int) -> Pick:
        """Returns the pick among a row's best tokens.

        Args:
            tokens: the best tokens, best first, ties by lower id.
            logits: theirs.
            confidence: the best token's probability at temperature 1.
            position: the absolute position that the row decides.
        """
        weights, is_closed, is_exact = self._weights(logits, confidence)
        noise = self._noise.log_uniforms(position, tokens[: len(weights)])
        best = second = -math.inf
        index = 0
        for i, weight in enumerate(weights):
            key = noise[i] / weight
            if key > best:
                best, second, index = key, best, i
            elif key > second:
                second = key
        is_sure = is_closed and best - second > -_LEAD * best and self._is_kept(index, weights, logits, is_exact=is_exact)
        return Pick(tokens[index], is_sure)

    def rank(self, tokens: Sequence[int], logits: Sequence[float], confidence: float, position: int, max_alternatives: int) -> list[int]:
        """Returns the pick among a row's best tokens, sure or not, and the next ones whose scores are within `ALTERNATIVE_GAP` of its.

        Args:
            tokens: as in `pick`, and so the other three.
            logits: theirs.
            confidence: the best token's.
            position: of the row.
            max_alternatives: most tokens behind the pick.
        """
        weights, _, _ = self._weights(logits, confidence)
        noise = self._noise.log_uniforms(position, tokens[: len(weights)])
        keys = [n / w for n, w in zip(noise, weights, strict=True)]
        # A key k is below 0, and its score is -log(-k).
        least = max(keys) * _GAP_FACTOR
        near = sorted((-key, index) for index, key in enumerate(keys) if key >= least)
        return [tokens[index] for _, index in near[: max_alternatives + 1]]

    def _weights(self, logits: Sequence[float], confidence: float) -> tuple[list[float], bool, bool]:
        """Returns the weights, relative to the best token's, of the tokens that the filters may leave.

        Returns:
            The weights; whether the filters surely leave no further token; whether the weights are all that top-k left, so that top-p's
            total is their sum.
        """
        best, scale, min_p = logits[0], self._scale, self._min_p
        count = self._top_k_count(logits)
        is_exact = count < len(logits)
        weights: list[float] = []
        mass = 0.0
        # What the rest of the row weighs at temperature 1, of which the tokens seen are taken off one by one.
        tail = (1.0 + _MARGIN) / confidence
        for i in range(count):
            score = logits[i] - best
            weight = math.exp(score * scale)
            if weight < min_p * (1.0 - _MARGIN) or weight == 0.0:
                return weights, True, is_exact
            weights.append(weight)
            mass += weight
            if self._top_p < 1.0:
                at_one = math.exp(score)
                tail -= at_one
                # No token of the rest has a better score, so temperature shrinks each by at least as much as this one.
                rest = max(tail, 0.0) * weight / at_one
                if mass > self._top_p * (mass + rest) * (1.0 + _MARGIN):
                    return weights, True, False
        return weights, is_exact, is_exact

    def _top_k_count(self, logits: Sequence[float]) -> int:
        """Returns how many of the tokens top-k leaves, ties with the last included."""
        count = self._top_k
        if not 0 < count < len(logits):
            return len(logits)
        while count < len(logits) and logits[count] == logits[count - 1]:
            count += 1
        return count

    def _is_kept(self, index: int, weights: list[float], logits: Sequence[float], *, is_exact: bool) -> bool:
        """Whether top-p and min-p surely keep one of the tokens."""
        if index == 0:
            return True
        if self._min_p > 0.0 and weights[index] < self._min_p * (1.0 + _MARGIN):
            return False
        if self._top_p >= 1.0:
            return True
        before = sum(weights[:index])
        total = sum(weights)
        if before < self._top_p * total * (1.0 - _MARGIN):
            return True
        if is_exact:
            return False
        total += sum(math.exp((x - logits[0]) * self._scale) for x in logits[len(weights) : self._top_k_count(logits)])
        return before < self._top_p * total * (1.0 - _MARGIN)
