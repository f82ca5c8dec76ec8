"""Temperature, top-k, top-p and min-p, in that order: from a row of logits to the candidates that may be sampled.

The order and the meaning of each filter are those of transformers: top-k keeps ties with the k-th, top-p is applied to the
distribution renormalised after top-k and keeps the token that crosses the mark, min-p is relative to the best token.

This runs once for every drafted and every verified token, between two passes that leave nothing of it in the processor's caches, so what
counts is the number of array operations.
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray


class FilterSettings(Protocol):
    """What the filters read of the decoding settings."""

    @property
    def temperature(self) -> float:
        """Divides the logits; above 0."""

    @property
    def top_k(self) -> int:
        """Tokens to keep; 0 for all."""

    @property
    def top_p(self) -> float:
        """Probability to keep, in (0, 1]."""

    @property
    def min_p(self) -> float:
        """Least probability relative to the best token's, in [0, 1]."""


Candidates = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Token ids int64[n] and their weights float32[n]: probabilities relative to the row's best token, whose weight is 1."""

_SHARES: Final = (1e-2, 1e-4, 0.0)
"""Weights down to which candidates are looked for, in turn: mostly a few dozen tokens reach the mark, and few are quick to sort."""


def filtered(logits: NDArray[np.float32], settings: FilterSettings) -> Candidates:
    """Returns the candidates that the filters leave, at least one.

    Args:
        logits: float32[vocab].
        settings: temperature above 0, top_k, top_p, min_p.
    """
    scores = logits * np.float32(1.0 / settings.temperature)
    scores -= np.maximum.reduce(scores)
    weights = np.exp(scores)
    top_k = settings.top_k if settings.top_k < len(weights) else 0
    if top_k or settings.top_p < 1.0:
        ids, kept = _best(weights, top_k, settings.top_p)
    else:
        ids = weights.nonzero()[0]  # a weight that underflows to 0 is below any noise
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
    """Returns what top-k (0: all) and top-p leave, heaviest first, by sorting no more tokens than it takes to be sure."""
    mark = 0.0 if top_k else top_p * float(np.add.reduce(weights))
    for share in _SHARES:
        ids = (weights > share).nonzero()[0]
        chosen = weights[ids]
        order = (-chosen).argsort(kind="stable")
        chosen = chosen[order]
        total = chosen.cumsum(dtype=np.float64)
        if share == 0.0 or (len(ids) >= top_k and total[-1] >= mark):
            break
    if top_k:
        count = int((chosen >= chosen[min(top_k, len(chosen)) - 1]).sum())
        mark = top_p * float(total[count - 1])
    else:
        count = len(ids)
    if top_p < 1.0:
        count = min(count, int(total.searchsorted(mark)) + 1)
    return ids[order[:count]], chosen[:count]
