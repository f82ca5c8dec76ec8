"""How near a token's choice was: decision scores, and distances to the cuts of the filters, of one row of logits.

A decoded token is the argmax of decision scores: the logits when greedy; when sampling, logits / temperature plus the noise of
(seed, position, token), among the candidates that top-k, top-p and min-p leave. A change of rounding size flips it only where two
scores, or a score and a cut, lie that near; `sstool.validation.lossless` asks here whether they do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.acceptance.coupled import coupled_sample
from ssruntime.config import DecodeSettings
from ssruntime.sampling.filters import filtered
from ssruntime.sampling.noise import CoupledNoise, gumbel

NEAR_TIE_TOLERANCE: Final = 1e-4
"""Most that decision scores may differ by in a near tie (fp32)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How one token stands in one row.

    Attributes:
        score: its decision score, whether or not a filter leaves it.
        kept: whether the filters leave it; always so when greedy.
        to_cut: how far its score (for top-p also its cumulative probability) is from changing `kept`; infinite without filters.
    """

    score: float
    kept: bool
    to_cut: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The logits that decided one token.

    Attributes:
        logits: float32[vocab].
        position: absolute position of the decided token in the sequence; 0 is the prompt's first token.
    """

    logits: NDArray[np.float32]
    position: int


def decide(row: Row, settings: DecodeSettings) -> int:
    """Returns the token that plain decoding takes from a row."""
    if settings.is_greedy:
        return int(row.logits.argmax())
    return coupled_sample(row.logits, row.position, settings, CoupledNoise(settings.seed))


def standing(row: Row, settings: DecodeSettings, token: int) -> Standing:
    """Returns how `token` stands in a row."""
    if settings.is_greedy:
        return Standing(score=float(row.logits[token]), kept=True, to_cut=math.inf)
    scores = row.logits * np.float32(1.0 / settings.temperature)
    scores -= scores.max()
    noise = gumbel(settings.seed, row.position, np.array([token], dtype=np.int64))
    ids, _ = filtered(row.logits, settings)
    kept = bool((ids == token).any())
    return Standing(
        score=float(scores[token]) + float(noise[0]), kept=kept, to_cut=_to_cut(scores.astype(np.float64), settings, token, kept)
    )


def _to_cut(scores: NDArray[np.float64], settings: DecodeSettings, token: int, kept: bool) -> float:
    """Returns the least change that lets `token` out, or in: out takes the nearest cut, in takes passing every cut it is beyond."""
    sides = list(_sides(scores, settings, token))
    beyond = [side for side in sides if side < 0]
    if kept or not beyond:
        return min((abs(side) for side in sides), default=math.inf)
    return max(-side for side in beyond)


def _sides(scores: NDArray[np.float64], settings: DecodeSettings, token: int) -> list[float]:
    """Returns the signed distance to each filter's cut: negative where that filter drops the token."""
    own = scores[token]
    sides = []
    left = np.arange(len(scores))
    if 0 < settings.top_k < len(scores):
        ordered = np.sort(scores)[::-1]
        kth = ordered[settings.top_k - 1]
        sides.append(float(own - kth) if own < kth else _above(own, scores[scores < kth]))
        left = np.flatnonzero((scores >= kth) | (np.arange(len(scores)) == token))
    if settings.top_p < 1.0:
        sides.append(_top_p_side(scores, left, settings.top_p, token))
    if settings.min_p > 0.0:
        sides.append(float(own - math.log(settings.min_p)))
    return sides


def _above(score: np.float64, dropped: NDArray[np.float64]) -> float:
    return float(score - dropped.max()) if len(dropped) else math.inf


def _top_p_side(scores: NDArray[np.float64], left: NDArray[np.int64], top_p: float, token: int) -> float:
    """Returns the signed distance to the nucleus: in probability before the token, or in score to its neighbour across the cut."""
    order = left[np.argsort(-scores[left], kind="stable")]
    weights = np.exp(scores[order])
    before = (np.cumsum(weights) - weights) / weights.sum()
    rank = int(np.flatnonzero(order == token)[0])
    inside = before < top_p
    mass = abs(float(before[rank]) - top_p)
    if inside[rank]:
        return min(mass, _above(scores[token], scores[order[~inside]]))
    return -min(mass, float(scores[order[inside]].min() - scores[token]))
