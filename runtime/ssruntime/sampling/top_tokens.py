"""The most probable tokens of a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def top_tokens(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Returns the most probable tokens int64[count], best first, ties by lower id.

    Args:
        logits: float32[vocab].
        count: number of tokens; a larger number than the vocabulary's gives all of them.
    """
    count = min(count, len(logits))
    if not count:
        return np.empty(0, dtype=np.int64)
    least = np.partition(logits, -count)[-count]
    candidates = np.flatnonzero(logits >= least)
    # Stable, so ties stay in the order of their ids.
    return candidates[np.argsort(-logits[candidates], kind="stable")[:count]]
