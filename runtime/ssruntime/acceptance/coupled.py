"""Gumbel-coupled sampling: draft and target share their noise; a draft token is accepted if both sample it.

Each takes `argmax(score + noise)`. By the Gumbel-max trick, each sample has exactly the filtered
distribution. The noise depends only on seed, position and token. So the text is that of autoregressive
sampling (mode `plain`) with the same seed, whatever is drafted (Daliri, Musco & Suresh, arXiv 2408.07978).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ssruntime.acceptance.base import RoundResult
from ssruntime.acceptance.equality import accept_equal
from ssruntime.backends.base import StepOutput
from ssruntime.config import DecodeSettings
from ssruntime.proposal import ALTERNATIVE_GAP, Proposal
from ssruntime.sampling.filters import FilterSettings, certain_from, filtered
from ssruntime.sampling.noise import CoupledNoise
from ssruntime.sampling.shortlist import Shortlist


class CoupledAcceptance:
    """Samples with noise that draft and target share. An instance belongs to one request."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._noise = CoupledNoise(settings.seed)
        self._certain_from = certain_from(settings)
        self._shortlist = Shortlist(settings, self._noise) if Shortlist.helps(settings) else None

    def sample(self, output: StepOutput, position: int) -> int:
        """Returns the target's sample from the first row."""
        return self._sample(output, 0, position)

    def sample_draft(self, output: StepOutput, position: int, max_alternatives: int) -> list[int]:
        """Returns the draft's sample, with the noise that the target will use, then the alternatives.

        The ranking of the shortlist is used even where it is uncertain: it seldom differs from that of the
        whole row, and an inexact proposal does not change the text.
        """
        if output.probability(0) >= self._certain_from:
            return [output.token(0)]
        if self._shortlist is not None:
            return self._shortlist.rank(*output.top(0), output.probability(0), position, max_alternatives)
        return coupled_ranking(output.logits[0], position, self._settings, self._noise, max_alternatives)

    def accept(self, output: StepOutput, proposal: Proposal, position: int) -> RoundResult:
        """Returns the draft tokens that equal the target's samples, then the target's next token."""
        return accept_equal(proposal, lambda row, offset: self._sample(output, row, position + offset))

    def _sample(self, output: StepOutput, row: int, position: int) -> int:
        confidence = output.probability(row)
        if confidence >= self._certain_from:
            return output.token(row)
        if self._shortlist is not None:
            token, is_sure = self._shortlist.pick(*output.top(row), confidence, position)
            if is_sure:
                return token
        return coupled_sample(output.logits[row], position, self._settings, self._noise)


def coupled_sample(logits: NDArray[np.float32], position: int, settings: FilterSettings, noise: CoupledNoise) -> int:
    """Returns the token that coupled sampling takes from logits float32[vocab] for an absolute position."""
    ids, weights = filtered(logits, settings)
    if len(ids) == 1:
        return int(ids[0])
    return int(ids[(noise.log_uniform(position, ids) / weights).argmax()])


def coupled_ranking(
    logits: NDArray[np.float32], position: int, settings: FilterSettings, noise: CoupledNoise, max_alternatives: int
) -> list[int]:
    """Returns the token of `coupled_sample`, then the next-best ones within `ALTERNATIVE_GAP` of its score.

    There are at most `max_alternatives` next-best tokens. Arguments as in `coupled_sample`.
    """
    ids, weights = filtered(logits, settings)
    keys = noise.log_uniform(position, ids) / weights
    count = min(max_alternatives + 1, len(keys))
    best = keys.argpartition(-count)[-count:]
    # Keys are below 0, and a key k has the score -log(-k): a gap of scores is a factor between keys.
    best = best[keys[best] >= keys.max() * math.exp(ALTERNATIVE_GAP)]
    return [int(t) for t in ids[best[np.lexsort((best, -keys[best]))]]]
