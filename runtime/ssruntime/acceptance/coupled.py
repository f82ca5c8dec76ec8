"""Gumbel-coupled sampling: draft and target share their noise; a draft token is accepted if both sample it.

Each takes `argmax(score + noise)`. By the Gumbel-max trick, each sample has exactly the filtered
distribution. The noise depends only on seed, position and token. So the text is that of autoregressive
sampling (mode `plain`) with the same seed, whatever is drafted (Daliri, Musco & Suresh, arXiv 2408.07978).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssruntime.acceptance.base import DraftSample, RoundResult, branch_error
from ssruntime.acceptance.equality import accept_equal
from ssruntime.backends.base import StepOutput
from ssruntime.config import DecodeSettings
from ssruntime.planning.acceptance import Evidence
from ssruntime.proposal import Proposal
from ssruntime.sampling.filters import (
    ALTERNATIVE_KEY_FACTOR,
    MOST_MARGIN,
    FilterSettings,
    certain_from,
    filtered,
    relative_error,
    scale_of,
    scores_of,
)
from ssruntime.sampling.noise import CoupledNoise
from ssruntime.sampling.shortlist import Ranking, Shortlist, margin_of

_MOST_APART: Final = 0.5
"""Largest shift between two scores, in nats, up to which a token can be sure.

Only temperatures close to 0, which magnify errors in the logits, exceed it."""


class _Filters(NamedTuple):
    """Filters other than those of a request."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float


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

    def sample_draft(self, output: StepOutput, position: int, max_alternatives: int) -> DraftSample:
        """Returns the draft's sample, with the noise that the target will use, then the alternatives.

        The ranking of the shortlist is used even where it is uncertain: it seldom differs from that of the
        whole row, and an inexact proposal does not change the text.
        """
        confidence = output.probability(0)
        if confidence >= self._certain_from:
            return DraftSample([output.token(0)], Evidence(confidence, confidence, MOST_MARGIN))
        if self._shortlist is not None:
            found = self._shortlist.rank(*output.top(0), confidence, position, max_alternatives)
        else:
            found = coupled_ranking(output.logits[0], position, self._settings, self._noise, max_alternatives)
        return DraftSample(found.tokens, Evidence(confidence, confidence * found.relative, found.margin))

    def accept(self, output: StepOutput, proposal: Proposal, position: int) -> RoundResult:
        """Returns the draft tokens that equal the target's samples, then the target's next token."""
        return accept_equal(
            proposal,
            lambda row: self._sample(output, row, position + row),
            lambda row, offset: self._sure_sample(output, row, position + offset),
        )

    def _sample(self, output: StepOutput, row: int, position: int) -> int:
        confidence = output.probability(row)
        if confidence >= self._certain_from:
            return output.token(row)
        if self._shortlist is not None:
            token, is_sure = self._shortlist.pick(*output.top(row), confidence, position)
            if is_sure:
                return token
        return coupled_sample(output.logits[row], position, self._settings, self._noise)

    def _sure_sample(self, output: StepOutput, row: int, position: int) -> int | None:
        """Returns the sample of a row; None if an error within the branch margin could change it."""
        settings, (tokens, logits) = self._settings, output.top(row)
        apart, scale = branch_error(logits, settings.branch_margin), scale_of(settings)
        if apart * scale > _MOST_APART:
            return None
        if 0 < settings.top_k < len(logits) and logits[settings.top_k - 1] - logits[settings.top_k] <= apart:
            return None
        if self._shortlist is not None:
            token, is_sure = self._shortlist.pick(tokens, logits, output.probability(row), position, apart=apart)
            if is_sure:
                return token
        return _sure_from_row(output.logits[row], position, settings, self._noise, apart)


def coupled_sample(logits: NDArray[np.float32], position: int, settings: FilterSettings, noise: CoupledNoise) -> int:
    """Returns the token that coupled sampling takes from logits float32[vocab] for an absolute position."""
    ids, weights = filtered(logits, settings)
    if len(ids) == 1:
        return int(ids[0])
    return int(ids[(noise.log_uniform(position, ids) / weights).argmax()])


def _sure_from_row(logits: NDArray[np.float32], position: int, settings: FilterSettings, noise: CoupledNoise, apart: float) -> int | None:
    """Returns the token of `coupled_sample`; None if errors could change it.

    The token must be kept by the filters whatever the errors are, and must win against every token that the
    filters may keep.

    Args:
        logits: float32[vocab].
        position: absolute position that the row predicts.
        settings: temperature and filters.
        noise: noise that draft and target share.
        apart: distance by which errors may move two logits apart.
    """
    top_k, top_p = settings.top_k, settings.top_p
    factor = 1.0 + relative_error(apart * scale_of(settings))
    if 0 < top_k < len(logits):
        kth = np.partition(logits, -top_k)[-top_k]
        if np.count_nonzero(logits >= kth - apart) > top_k:
            return None
    may_be_kept = _Filters(settings.temperature, top_k, min(1.0, top_p * factor), settings.min_p / factor)
    ids, weights = filtered(logits, may_be_kept)
    if may_be_kept.top_p < 1.0 or settings.min_p > 0.0:
        # Errors may bring in tokens just below the last one that is kept.
        ids = (logits >= logits[ids].min() - apart).nonzero()[0]
        weights = np.exp(scores_of(logits, settings)[ids])
    keys = noise.log_uniform(position, ids) / weights
    index = int(keys.argmax())
    best, weight = keys[index], weights[index]
    if np.count_nonzero(keys >= best * factor) > 1 or weight < settings.min_p * factor:
        return None
    if top_p < 1.0:
        # Errors may rank tokens of nearly the same weight before the sampled one.
        before = float(weights[weights * factor >= weight].sum()) - float(weight)
        _, all_weights = filtered(logits, _Filters(settings.temperature, top_k, 1.0, 0.0))
        if before * factor >= top_p * float(all_weights.sum()):
            return None
    return int(ids[index])


def coupled_ranking(
    logits: NDArray[np.float32], position: int, settings: FilterSettings, noise: CoupledNoise, max_alternatives: int
) -> Ranking:
    """Returns the token of `coupled_sample`, then the next-best ones within `ALTERNATIVE_GAP` of its score.

    There are at most `max_alternatives` next-best tokens. Arguments as in `coupled_sample`.
    """
    ids, weights = filtered(logits, settings)
    keys = noise.log_uniform(position, ids) / weights
    count = min(max(max_alternatives, 1) + 1, len(keys))
    best = keys.argpartition(-count)[-count:]
    best = best[np.lexsort((best, -keys[best]))]
    margin = margin_of(float(keys[best[0]]), float(keys[best[1]])) if count > 1 else MOST_MARGIN
    close = best[keys[best] >= keys.max() * ALTERNATIVE_KEY_FACTOR][: max_alternatives + 1]
    # The weight of a row's best token is 1 after temperature; back at temperature 1, this is its probability.
    relative = float(weights[best[0]]) ** (1.0 / scale_of(settings))
    return Ranking([int(t) for t in ids[close]], relative, margin)
