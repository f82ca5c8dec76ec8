"""Coupled sampling from a row's top tokens, with a flag that is set only if the whole row gives the same.

The definition of coupled sampling is `filtered` plus noise over the whole row, which takes about twenty array
operations. They are slow after an engine pass, which evicts numpy's code from the CPU caches. One loop over
Python numbers costs as much as about two of them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from ssruntime.sampling.filters import ALTERNATIVE_KEY_FACTOR, MOST_MARGIN, FilterSettings, relative_error, scale_of
from ssruntime.sampling.noise import CoupledNoise

_LEAD: Final = 1e-4
"""Relative lead of the best key over the second one, above which rounding cannot change their order."""


class Pick(NamedTuple):
    """A sampled token, and whether filters and noise over the whole row certainly give the same token."""

    token: int
    is_sure: bool


class Ranking(NamedTuple):
    """A sampled token, and those that are close to it.

    Attributes:
        tokens: the token, then the next-best ones, best first.
        relative: probability of the token at temperature 1, as a fraction of that of the row's best token.
        margin: distance in nats of its score from the next-best one's, at most `MOST_MARGIN`.
    """

    tokens: list[int]
    relative: float
    margin: float


def margin_of(best: float, second: float) -> float:
    """Returns the distance in nats of two scores, at most `MOST_MARGIN`, from their keys.

    A key is below 0, or 0 for a score without limit; it has the score -log(-key).
    """
    if best >= 0.0:
        return 0.0 if second >= 0.0 else MOST_MARGIN
    return min(math.log(second / best), MOST_MARGIN)


class Shortlist:
    """Samples from the top tokens of rows, with the settings and the noise of one request."""

    def __init__(self, settings: FilterSettings, noise: CoupledNoise) -> None:
        self._noise = noise
        self._scale = scale_of(settings)
        self._top_k = settings.top_k
        self._top_p = settings.top_p
        self._min_p = settings.min_p

    @staticmethod
    def helps(settings: FilterSettings) -> bool:
        """Returns whether a pick can ever be certain with these settings.

        Without filters, even the least probable token of the vocabulary may be sampled. A temperature above 1
        may raise any number of tokens of the tail, of which only the total probability at temperature 1 is
        known.
        """
        return settings.temperature <= 1.0 and (settings.top_p < 1.0 or settings.top_k > 0 or settings.min_p > 0.0)

    def pick(self, tokens: Sequence[int], logits: Sequence[float], confidence: float, position: int, *, apart: float = 0.0) -> Pick:
        """Returns the token that coupled sampling takes from a row's top tokens.

        Args:
            tokens: top tokens of the row, best first, ties by lower id.
            logits: logits of these tokens.
            confidence: probability of the best token at temperature 1.
            position: absolute position that the row predicts.
            apart: distance by which errors may move two logits apart; the token is sure only if no such error
                changes it.
        """
        margin = relative_error(apart * self._scale)
        lead = max(margin, _LEAD)
        weights, is_closed, is_exact = self._weights(logits, confidence, margin)
        if apart > 0.0:
            # A token that is not among the weights must not be able to take the place of one that is.
            count = len(weights)
            is_closed = is_closed and count < len(logits) and logits[count - 1] - logits[count] > apart
        uniforms = self._noise.uniforms(position, tokens[: len(weights)])
        best = second = -math.inf
        index = 0
        for i, weight in enumerate(weights):
            uniform = uniforms[i]
            if uniform <= 1.0 + second * weight:  # at most exp(second * weight), so the key is not above the second one
                continue
            key = math.log(uniform) / weight
            if key > best:
                best, second, index = key, best, i
            elif key > second:
                second = key
        is_sure = (
            is_closed
            and best - second > -lead * best
            and self._is_kept(index, weights, logits, margin, is_exact=is_exact, ranks_may_change=apart > 0.0)
        )
        return Pick(tokens[index], is_sure)

    def rank(self, tokens: Sequence[int], logits: Sequence[float], confidence: float, position: int, max_alternatives: int) -> Ranking:
        """Returns the token of `pick`, certain or not, then the next-best ones that are close to it.

        Close means within `ALTERNATIVE_GAP` of its score.

        Args:
            tokens: top tokens of the row, as for `pick`.
            logits: logits of these tokens.
            confidence: probability of the best token at temperature 1.
            position: absolute position that the row predicts.
            max_alternatives: largest number of next-best tokens.
        """
        weights, _, _ = self._weights(logits, confidence, relative_error(0.0))
        uniforms = self._noise.uniforms(position, tokens[: len(weights)])
        near: list[tuple[float, int]] = []
        least = best = second = -math.inf
        for index, weight in enumerate(weights):
            uniform = uniforms[index]
            # A key is at most exp(least * weight), so it is not above the least one.
            if uniform <= 1.0 + min(least, second) * weight:
                continue
            key = math.log(uniform) / weight
            if key > best:
                best, second = key, best
            elif key > second:
                second = key
            near.append((-key, index))
            least = max(least, key * ALTERNATIVE_KEY_FACTOR)
        near.sort()
        chosen = [tokens[index] for negated, index in near[: max_alternatives + 1] if -negated >= least]
        relative = math.exp(logits[near[0][1]] - logits[0])
        return Ranking(chosen, relative, MOST_MARGIN if second == -math.inf else margin_of(best, second))

    def _weights(self, logits: Sequence[float], confidence: float, margin: float) -> tuple[list[float], bool, bool]:
        """Computes the weights, relative to the best token's, of the tokens that the filters may keep.

        Returns:
            The weights; whether the filters certainly keep no further token; whether the weights cover all
            tokens that top-k keeps, so that top-p refers to their sum.
        """
        best, scale, exp = logits[0], self._scale, math.exp
        count = self._top_k_count(logits)
        is_exact = count < len(logits)
        least = max(self._min_p * (1.0 - margin), sys.float_info.min)
        top_p = self._top_p * (1.0 + margin)
        # The filters keep no further token once the rest of the row has less than this share of the mass.
        share = (1.0 - top_p) / top_p if self._top_p < 1.0 and top_p < 1.0 else -math.inf
        weights: list[float] = []
        mass = 0.0
        # Upper bound on the weight of the row's other tokens (the rest) at temperature 1; falls in the loop.
        tail = (1.0 + margin) / confidence
        for logit in logits if count == len(logits) else logits[:count]:
            score = logit - best
            weight = exp(score * scale)
            if weight < least:
                return weights, True, is_exact
            weights.append(weight)
            mass += weight
            at_one = exp(score)
            tail -= at_one
            # The rest has no higher score, so temperature shrinks each of its tokens at least as much.
            if tail * weight < share * mass * at_one:
                return weights, True, False
        return weights, is_exact, is_exact

    def _top_k_count(self, logits: Sequence[float]) -> int:
        """Returns how many of the tokens top-k keeps, including ties with the last one."""
        count = self._top_k
        if not 0 < count < len(logits):
            return len(logits)
        while count < len(logits) and logits[count] == logits[count - 1]:
            count += 1
        return count

    def _is_kept(
        self, index: int, weights: list[float], logits: Sequence[float], margin: float, *, is_exact: bool, ranks_may_change: bool
    ) -> bool:
        """Returns whether top-p and min-p certainly keep the token at `index`."""
        if index == 0 and not ranks_may_change:
            return True
        if self._min_p > 0.0 and weights[index] < self._min_p * (1.0 + margin):
            return False
        if self._top_p >= 1.0:
            return True
        before = sum(weights[:index])
        if ranks_may_change:
            before += sum(w for w in weights[index + 1 :] if w >= weights[index] * (1.0 - margin))
        total = sum(weights)
        if before < self._top_p * total * (1.0 - margin):
            return True
        if is_exact:
            return False
        total += sum(math.exp((x - logits[0]) * self._scale) for x in logits[len(weights) : self._top_k_count(logits)])
        return before < self._top_p * total * (1.0 - margin)
