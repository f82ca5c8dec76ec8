"""The best draft length by dynamic programming: from costs, and from how likely draft tokens are accepted.

A round of k draft tokens costs k draft steps and a verify pass of k + 1 rows. It emits one token and, in
expectation, the sum of the *survivals* of its draft tokens; a token's survival is the probability that it and
all tokens before it are accepted. The best policy for tokens per second is the one with the largest expected
`tokens - rate * seconds`, where `rate` is its own speed (Dinkelbach's method finds it).

A token's acceptance probability is known once it is drafted. Those of later tokens are not, and are taken to
be drawn from typical ones. So the best choice depends on the depth and the survival alone: draft on while the
survival reaches a threshold. The threshold looks ahead over the whole horizon, because costs need not grow
evenly with the number of rows.
"""

from __future__ import annotations

import functools
import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssruntime.planning.costs import RoundCosts

NEVER: Final = 2.0
"""Threshold that no survival reaches."""
_STEP: Final = 0.1
"""Distance of neighbouring points of the survival grid, in nats."""
_POINTS: Final = 48
_SURVIVALS: Final = np.exp(-_STEP * np.arange(_POINTS))
_HALF_STEP: Final = math.exp(-_STEP / 2)
_MOST_MOVES: Final = 64
"""Most matrices that are kept, of 18 kB each."""
_MOST_ROUNDS: Final = 8
"""Most iterations of Dinkelbach's method, which needs two to four."""
_CLOSE: Final = 1e-3
_LEAST_GAIN: Final = 0.05
"""Smallest gain that a draft must promise, in tokens a round and as a fraction of the speed.

Costs and probabilities are not known well enough to tell a smaller one from a loss."""


class DraftPlan(NamedTuple):
    """The best policy for drafting.

    Attributes:
        thresholds: survival from which on another token is drafted, by the number of tokens drafted so far.
        rate: tokens per second of the policy, or of autoregressive decoding if that is faster.
        gain: expected tokens of a round of the policy, less `rate` times its seconds.
    """

    thresholds: tuple[float, ...]
    rate: float
    gain: float


def best_plan(
    costs: RoundCosts, probabilities: NDArray[np.float64], limit: int, *, rate: float | None = None, extra: float = 0.0
) -> DraftPlan:
    """Returns the best policy for draft sequences of at most `limit` tokens.

    Args:
        costs: seconds of the passes.
        probabilities: acceptance probabilities of typical draft tokens, all equally likely, float64[n].
        limit: largest number of draft tokens, 0 to 15.
        rate: tokens per second that time is worth; None for the policy's own.
        extra: tokens that alternatives add to a round with a draft, on average.
    """
    plain = 1.0 / costs.verify[0]
    known, rate = rate is not None, plain if rate is None else rate
    moves, mean = _moves(probabilities), float(probabilities.mean())
    for _ in range(_MOST_ROUNDS):
        thresholds, tokens, seconds = _solve(costs, moves, mean, limit, rate, extra)
        reached = tokens / seconds
        if known or reached <= rate * (1 + _CLOSE):
            break
        rate = reached
    gain, without = tokens - rate * seconds, 1.0 - rate * costs.verify[0]
    if gain - without < _LEAST_GAIN or (not known and rate < plain * (1 + _LEAST_GAIN)):
        return DraftPlan((NEVER,) * (limit + 1), rate if known else plain, without if known else 0.0)
    return DraftPlan(thresholds, max(rate, plain), gain)


def shared_plan(
    costs: RoundCosts, probabilities: NDArray[np.float64], limit: int, *, rate: float | None = None, extra: float = 0.0
) -> DraftPlan:
    """Returns the best number of draft tokens for sequences that share their passes; arguments as above.

    A pass computes as many rows for each sequence as for the one with the longest draft. So all draft equally
    long: a draft that stops early saves nothing, and one that goes on makes every other sequence wait.
    """
    plain, mean = 1.0 / costs.verify[0], float(probabilities.mean())
    tokens = 1.0 + np.concatenate([[0.0], extra + np.cumsum(mean ** np.arange(1, limit + 1))])
    seconds = np.array([costs.seconds(count + 1, count) for count in range(limit + 1)])
    count = int((tokens / seconds).argmax())
    reached = float(tokens[count] / seconds[count])
    if reached < plain * (1 + _LEAST_GAIN):
        count, reached = 0, plain
    gain = float(tokens[count] - (reached if rate is None else rate) * seconds[count])
    return DraftPlan((0.0,) * count + (NEVER,) * (limit + 1 - count), reached if rate is None else rate, gain)


def _solve(
    costs: RoundCosts, moves: NDArray[np.float64], mean: float, limit: int, rate: float, extra: float
) -> tuple[tuple[float, ...], float, float]:
    """Returns the thresholds of the best policy at a rate, and the expected tokens and seconds of a round."""
    tokens, seconds = np.full(_POINTS, extra), np.full(_POINTS, costs.drafted[limit])
    thresholds = [NEVER] * (limit + 1)
    accepted = mean * _SURVIVALS
    for depth in range(limit - 1, -1, -1):
        further, longer = accepted + moves @ tokens, costs.draft + moves @ seconds
        now, stopped = (costs.drafted[depth], extra) if depth else (costs.verify[0], 0.0)
        goes_on = further - stopped > rate * (longer - now)
        tokens, seconds = np.where(goes_on, further, stopped), np.where(goes_on, longer, now)
        last = int(goes_on.nonzero()[0].max(initial=-1))
        if last >= 0:
            thresholds[depth] = float(_SURVIVALS[last]) * _HALF_STEP
    return tuple(thresholds), 1.0 + float(tokens[0]), float(seconds[0])


def _moves(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how the survival changes with one more draft token, float64[points, points]; rows sum to 1.

    Entry [i, j] is the weight of grid point j after grid point i. A survival between two points counts for
    both, as in linear interpolation.
    """
    return _moves_of(probabilities.tobytes())


@functools.lru_cache(maxsize=_MOST_MOVES)
def _moves_of(known: bytes) -> NDArray[np.float64]:
    """Returns `_moves` of probabilities, float64[n] as bytes: plans change more often than these do."""
    probabilities = np.frombuffer(known)
    places = np.arange(_POINTS)[:, None] + (-np.log(np.clip(probabilities, 1e-6, 1.0)) / _STEP)[None, :]
    places = np.minimum(places, _POINTS - 1.001)
    below = places.astype(np.int64)
    rows, part = np.broadcast_to(np.arange(_POINTS)[:, None], places.shape), (places - below) / len(probabilities)
    moves = np.zeros((_POINTS, _POINTS))
    np.add.at(moves, (rows, below), 1.0 / len(probabilities) - part)
    np.add.at(moves, (rows, below + 1), part)
    return moves
