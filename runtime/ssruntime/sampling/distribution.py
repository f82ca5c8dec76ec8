"""Probability distributions over tokens, and the arithmetic of rejection sampling on them.

Source: Leviathan et al., arXiv 2211.17192.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Distribution(NamedTuple):
    """A distribution over tokens; tokens that are not listed have probability 0.

    Attributes:
        ids: int64[n], distinct token ids.
        probs: float64[n], their probabilities, which sum to 1.
    """

    ids: NDArray[np.int64]
    probs: NDArray[np.float64]

    def prob(self, token: int) -> float:
        """Returns the probability of a token."""
        found = np.flatnonzero(self.ids == token)
        return float(self.probs[found[0]]) if len(found) else 0.0


def point_mass(token: int) -> Distribution:
    """Returns the distribution that gives one token with certainty."""
    return Distribution(np.array([token], dtype=np.int64), np.ones(1))


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
