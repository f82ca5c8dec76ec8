"""Rejection sampling: accepts a draft token with probability min(1, target / draft), else replaces it.

The replacement, a correction token, is drawn from the residual distribution, proportional to max(0, target -
draft). Source: Leviathan et al., arXiv 2211.17192. The output has exactly the target's filtered distribution,
but it is not the text that autoregressive sampling (mode `plain`) gives for the same seed. Both distributions
are taken after filtering. The test is lossless only if the draft's token was *drawn* from `draft_probs`, so
`sample_draft` always draws.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssruntime.acceptance.base import RoundResult
from ssruntime.backends.base import StepOutput
from ssruntime.config import DecodeSettings
from ssruntime.proposal import Proposal
from ssruntime.sampling.filters import filtered, probabilities

_KEY_DOMAIN: Final = 0x52454A454354


class Distribution(NamedTuple):
    """Probabilities of the candidate tokens; every other token has probability 0.

    Attributes:
        ids: int64[n], distinct token ids.
        probs: float64[n], their probabilities, with sum 1.
    """

    ids: NDArray[np.int64]
    probs: NDArray[np.float64]

    def prob(self, token: int) -> float:
        """Returns the probability of a token."""
        found = np.flatnonzero(self.ids == token)
        return float(self.probs[found[0]]) if len(found) else 0.0


def accept_probability(token: int, target_probs: Distribution, draft_probs: Distribution) -> float:
    """Returns min(1, target / draft) for a token that was drawn from `draft_probs`."""
    return min(1.0, target_probs.prob(token) / draft_probs.prob(token))


def residual(target_probs: Distribution, draft_probs: Distribution) -> Distribution:
    """Returns the distribution of correction tokens, proportional to max(0, target - draft)."""
    order = np.argsort(draft_probs.ids)
    sorted_ids = draft_probs.ids[order]
    at = np.searchsorted(sorted_ids, target_probs.ids)
    at[at == len(sorted_ids)] = 0
    drafted = np.where(sorted_ids[at] == target_probs.ids, draft_probs.probs[order][at], 0.0)
    left = np.maximum(target_probs.probs - drafted, 0.0)
    total = left.sum()
    # The total is 0 only if both distributions are equal up to rounding. The rejection is then a rounding
    # error too, and drawing from the target's distribution is right.
    return Distribution(target_probs.ids, left / total) if total > 0 else target_probs


def draw(distribution: Distribution, uniform: float) -> int:
    """Returns the token that a uniform number in [0, 1) selects in the cumulative distribution."""
    cumulative = np.cumsum(distribution.probs)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(distribution.ids[min(index, len(distribution.ids) - 1)])


class RejectionAcceptance:
    """Draws draft and target tokens with one random generator. An instance belongs to one request."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._random = np.random.Generator(np.random.Philox(key=np.array([settings.seed, _KEY_DOMAIN], dtype=np.uint64)))
        self._drafted: list[Distribution] = []

    def sample(self, output: StepOutput, position: int) -> int:
        """Returns a token drawn from the first row's distribution."""
        return draw(self._distribution(output.logits[0]), self._random.random())

    def sample_draft(self, output: StepOutput, position: int, max_alternatives: int) -> list[int]:
        """Returns one token drawn from the draft's distribution, which is kept for `accept`; no alternatives.

        An alternative is not drawn from `draft_probs`. To accept one without changing the output's
        distribution would take a residual distribution of its own.
        """
        draft_probs = self._distribution(output.logits[0])
        self._drafted.append(draft_probs)
        return [draw(draft_probs, self._random.random())]

    def accept(self, output: StepOutput, proposal: Proposal, position: int) -> RoundResult:
        """Returns the tokens before the first rejection and a correction, or all of them and a bonus."""
        drafted, self._drafted = self._drafted, []
        tokens = proposal.tokens
        for row, (token, draft_probs) in enumerate(zip(tokens, drafted, strict=True)):
            target_probs = self._distribution(output.logits[row])
            if self._random.random() >= accept_probability(token, target_probs, draft_probs):
                return RoundResult([*tokens[:row], draw(residual(target_probs, draft_probs), self._random.random())])
        bonus = draw(self._distribution(output.logits[len(tokens)]), self._random.random())
        return RoundResult([*tokens, bonus])

    def _distribution(self, logits: NDArray[np.float32]) -> Distribution:
        ids, weights = filtered(logits, self._settings)
        return Distribution(ids, probabilities(weights))
