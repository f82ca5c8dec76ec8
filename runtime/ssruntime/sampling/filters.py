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
_FEW: Final = 32
"""Tokens up to which a plain loop adds up faster than an array operation whose code is not in the processor's caches."""
_MAX_SCALE: Final = 1e30
"""Of a temperature next to 0: more would overflow, and this leaves only the best token and its ties any probability."""
_CERTAINTY_MARGIN: Final = 1e-5
"""Far above the rounding of a probability in fp32, so that the shortcut never decides what the filters would not."""


def certain_from(settings: FilterSettings) -> float:
    """Returns the top-1 probability at temperature 1 from which the filters surely leave the best token alone; above 1 for never.

    With top-k 1 they always do, exact ties left out: of those the graph's own choice, the first, is as good as any.

    A temperature of at most 1 sharpens a distribution. The best token gains least where one other token has all the rest, r times its own
    probability; it then has 1 / (1 + r**(1/T)) of the whole, and is alone if that is at least top_p.
    """
    if settings.top_k == 1:
        return 0.0
    if settings.temperature > 1.0 or settings.top_p >= 1.0:
        return 2.0
    rest: float = (1.0 / settings.top_p - 1.0) ** settings.temperature
    return 1.0 / (1.0 + rest) + _CERTAINTY_MARGIN


def scale_of(settings: FilterSettings) -> float:
    """Returns what the logits are multiplied by."""
    return min(1.0 / settings.temperature, _MAX_SCALE)


def filtered(logits: NDArray[np.float32], settings: FilterSettings) -> Candidates:
    """Returns the candidates that the filters leave, at least one.

    Args:
        logits: float32[vocab].
        settings: temperature above 0, top_k, top_p, min_p.
    """
    # In this order, so that what rounding costs a token grows with its distance from the best one and not with the logits' own size.
    scores = logits - np.maximum.reduce(logits)
    scores *= np.float32(scale_of(settings))
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
    mark = top_p * float(np.add.reduce(weights))
    for share in _SHARES:
        ids = (weights > share).nonzero()[0]
        chosen = weights[ids]
        order = (-chosen).argsort(kind="stable")
        chosen = chosen[order]
        if top_k:
            if len(ids) < top_k and share > 0.0:
                continue
            chosen = chosen[: int((chosen >= chosen[min(top_k, len(ids)) - 1]).sum())]
            mark = top_p * float(np.add.reduce(chosen, dtype=np.float64))
        count = _reach(chosen, mark) if top_p < 1.0 else len(chosen)
        if count <= len(chosen):
            break
    return ids[order[:count]], chosen[:count]


def _reach(chosen: NDArray[np.float32], mark: float) -> int:
    """Returns how many of these falling weights it takes to add up to `mark`; one more than there are if they do not."""
    if len(chosen) > _FEW:
        return int(chosen.cumsum(dtype=np.float64).searchsorted(mark)) + 1
    total = 0.0
    for index, weight in enumerate(chosen.tolist()):
        total += weight
        if total >= mark:
            return index + 1
    return len(chosen) + 1
