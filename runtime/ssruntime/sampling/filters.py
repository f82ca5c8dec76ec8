"""Temperature, top-k, top-p and min-p, in that order: from logits to the candidates that may be sampled.

The order and the meaning of each filter are those of transformers: top-k keeps ties with the k-th, top-p is
applied to the distribution renormalised after top-k and keeps the token that crosses the mark, min-p is
relative to the best token.

The filters run once for every drafted and every verified token. Each engine pass in between evicts their code
and data from the CPU caches, so their cost is the number of array operations.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray


class FilterSettings(Protocol):
    """The decoding settings that the filters read."""

    @property
    def temperature(self) -> float:
        """Divisor of the logits, above 0."""

    @property
    def top_k(self) -> int:
        """Number of tokens to keep; 0 for all."""

    @property
    def top_p(self) -> float:
        """Probability, in (0, 1], that the tokens to keep must reach."""

    @property
    def min_p(self) -> float:
        """Smallest probability to keep, as a fraction of the best token's, in [0, 1]."""


Candidates = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Token ids int64[n] and weights float32[n]: probabilities divided by that of the row's best token."""

ALTERNATIVE_GAP: Final = 2.0
"""Largest distance, in nats, of an alternative's score below the score of the draft's own token.

The score is the logit, or with coupled sampling the log weight plus noise. The chance of being right falls
with the distance; 2 nats is the measured optimum."""
MOST_MARGIN: Final = 10.0
"""Distance in nats of a score from the next-best one where nothing competes; larger ones count as this."""
ALTERNATIVE_KEY_FACTOR: Final = math.exp(ALTERNATIVE_GAP)
"""`ALTERNATIVE_GAP` as a factor between keys: a key k is below 0 and has the score -log(-k)."""

_CUTOFFS: Final = (1e-2, 1e-4, 0.0)
"""Weights above which tokens are sorted, tried in this order: usually a few dozen tokens are enough."""
_FEW: Final = 32
"""Number of weights up to which a Python loop adds faster than an array operation with cold CPU caches."""
_MAX_SCALE: Final = 1e30
"""Largest factor for the logits, which limits temperatures close to 0.

A larger one could overflow. This one already leaves a probability above 0 only to the best token and its
ties."""
_ROUNDING: Final = 1e-5
"""Relative margin, far above the fp32 rounding errors of weights, of their sums and of a probability."""
_CERTAINTY_MARGIN: Final = 1e-5
"""Far above the fp32 rounding error of a probability, so that the shortcut never differs from the filters."""


def certain_from(settings: FilterSettings) -> float:
    """Returns the top-1 probability, at temperature 1, from which the filters keep only the best token.

    A result above 1 means that no probability is high enough. With top-k 1 the result is 0: only the best
    token is kept, except for exact ties, of which the graph's choice (the first one) is as good as any.

    A temperature of at most 1 sharpens a distribution. The best token gains least if a single other token has
    all the remaining probability, r times the best token's. The best token then gets
    1 / (1 + r**(1/T)), and is the only one kept if that is at least top_p.
    """
    if settings.top_k == 1:
        return 0.0
    if settings.temperature > 1.0 or settings.top_p >= 1.0:
        return 2.0
    rest: float = (1.0 / settings.top_p - 1.0) ** settings.temperature
    return 1.0 / (1.0 + rest) + _CERTAINTY_MARGIN


def relative_error(apart: float) -> float:
    """Returns a bound on the relative error of a weight, of a sum of weights or of a key.

    Args:
        apart: distance by which errors may move two scores apart, in nats; rounding comes on top.
    """
    return max(_ROUNDING, math.expm1(apart))


def scale_of(settings: FilterSettings) -> float:
    """Returns the factor that temperature applies to the logits."""
    return min(1.0 / settings.temperature, _MAX_SCALE)


def scores_of(logits: NDArray[np.float32], settings: FilterSettings) -> NDArray[np.float32]:
    """Returns float32[vocab], the logits after temperature, relative to the best one."""
    # Subtract before scaling: a token's rounding error grows with its distance from the best token,
    # instead of with the size of the logits.
    scores: NDArray[np.float32] = logits - np.maximum.reduce(logits)
    scores *= np.float32(scale_of(settings))
    return scores


def filtered(logits: NDArray[np.float32], settings: FilterSettings) -> Candidates:
    """Returns the candidates that the filters keep, at least one.

    Args:
        logits: float32[vocab].
        settings: temperature (above 0), top_k, top_p and min_p.
    """
    weights = np.exp(scores_of(logits, settings))
    top_k = settings.top_k if settings.top_k < len(weights) else 0
    if top_k or settings.top_p < 1.0:
        ids, kept = _best(weights, top_k, settings.top_p)
    else:
        ids = weights.nonzero()[0]  # noise cannot raise a weight that underflowed to 0
        kept = weights[ids]
    if settings.min_p > 0.0:
        above = kept >= settings.min_p
        ids, kept = ids[above], kept[above]
    return ids, kept


def probabilities(weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the candidates' probabilities float64[n], which sum to 1."""
    probs = weights.astype(np.float64)
    probs /= probs.sum()
    return probs


def _best(weights: NDArray[np.float32], top_k: int, top_p: float) -> Candidates:
    """Returns the candidates that top-k (0: all) and top-p keep, heaviest first.

    It sorts no more tokens than necessary.
    """
    mark = top_p * float(np.add.reduce(weights))
    for cutoff in _CUTOFFS:
        ids = (weights > cutoff).nonzero()[0]
        chosen = weights[ids]
        order = (-chosen).argsort(kind="stable")
        chosen = chosen[order]
        if top_k:
            if len(ids) < top_k and cutoff > 0.0:
                continue
            chosen = chosen[: int((chosen >= chosen[min(top_k, len(ids)) - 1]).sum())]
            mark = top_p * float(np.add.reduce(chosen, dtype=np.float64))
        count = _reach(chosen, mark) if top_p < 1.0 else len(chosen)
        if count <= len(chosen):
            break
    return ids[order[:count]], chosen[:count]


def _reach(chosen: NDArray[np.float32], mark: float) -> int:
    """Returns how many of the falling weights add up to `mark`; one more than there are if all fall short."""
    if len(chosen) > _FEW:
        return int(chosen.cumsum(dtype=np.float64).searchsorted(mark)) + 1
    total = 0.0
    for index, weight in enumerate(chosen.tolist()):
        total += weight
        if total >= mark:
            return index + 1
    return len(chosen) + 1
