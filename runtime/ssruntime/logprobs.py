"""Log probabilities of generated tokens: those of the model itself, before temperature and filters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssruntime.sampling.top_tokens import top_tokens


class TokenLogprob(NamedTuple):
    """The log probability of a token at its position.

    Attributes:
        logprob: natural logarithm of the token's probability at temperature 1.
        top: the most probable tokens of the position with their log probabilities, best first, ties by lower
            id; they need not include the token.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprob(logits: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Returns the log probability of a token.

    Args:
        logits: float32[vocab], the logits that predict the token's position.
        token: token id.
        top: number of most probable tokens to report.
    """
    best = float(logits.max())
    total = best + float(np.log(np.exp(logits.astype(np.float64) - best).sum()))
    return TokenLogprob(float(logits[token]) - total, tuple((one, float(logits[one]) - total) for one in top_tokens(logits, top).tolist()))
