"""Rejection sampling: accepts a draft token with probability min(1, target / draft), else replaces it.

The replacement, a correction token, is drawn from the residual distribution, proportional to max(0, target -
draft). Source: Leviathan et al., arXiv 2211.17192. The output has exactly the target's filtered distribution,
but it is not the text that autoregressive sampling (mode `plain`) gives for the same seed. Both distributions
are taken after filtering. The test is lossless only if the token was *drawn* from its
`draft_probs`; a token that a proposer gives with certainty counts as drawn from a point mass.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.acceptance.base import DraftSample, RoundResult
from ssruntime.backends.base import StepOutput
from ssruntime.config import DecodeSettings
from ssruntime.planning.acceptance import Evidence
from ssruntime.proposal import Proposal
from ssruntime.sampling.distribution import Distribution, accept_probability, draw, point_mass, residual
from ssruntime.sampling.filters import filtered, probabilities

_KEY_DOMAIN: Final = 0x52454A454354


class RejectionAcceptance:
    """Draws draft and target tokens with one random generator. An instance belongs to one request."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._random = np.random.Generator(np.random.Philox(key=np.array([settings.seed, _KEY_DOMAIN], dtype=np.uint64)))

    def sample(self, output: StepOutput, position: int) -> int:
        """Returns a token drawn from the first row's distribution."""
        return draw(self._distribution(output.logits[0]), self._random.random())

    def sample_draft(self, output: StepOutput, position: int, max_alternatives: int) -> DraftSample:
        """Returns one token drawn from the draft's distribution, and that distribution; no alternatives.

        An alternative is not drawn from `draft_probs`. To accept one without changing the output's
        distribution would take a residual distribution of its own.
        """
        draft_probs = self._distribution(output.logits[0])
        token, confidence = draw(draft_probs, self._random.random()), output.probability(0)
        logits = output.logits[0]
        probability = confidence * math.exp(float(logits[token] - logits[output.token(0)]))
        return DraftSample([token], Evidence(confidence, probability, 1.0), draft_probs)

    def accept(self, output: StepOutput, proposal: Proposal, position: int) -> RoundResult:
        """Returns the tokens before the first rejection and a correction, or all of them and a bonus."""
        tokens = proposal.tokens
        for row, (token, drawn_from) in enumerate(zip(tokens, proposal.draft_probs, strict=True)):
            draft_probs = point_mass(token) if drawn_from is None else drawn_from
            target_probs = self._distribution(output.logits[row])
            if self._random.random() >= accept_probability(token, target_probs, draft_probs):
                return RoundResult([*tokens[:row], draw(residual(target_probs, draft_probs), self._random.random())])
        bonus = draw(self._distribution(output.logits[len(tokens)]), self._random.random())
        return RoundResult([*tokens, bonus])

    def _distribution(self, logits: NDArray[np.float32]) -> Distribution:
        ids, weights = filtered(logits, self._settings)
        return Distribution(ids, probabilities(weights))
