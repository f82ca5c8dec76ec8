"""Measures how close the choice of a token was: its decision score and its distance to the filters' cuts.

Decoding chooses the token with the highest decision score. In greedy decoding the score is the logit. In
sampling it is logit / temperature plus the noise of (seed, position, token), among the candidates that top-k,
top-p and min-p keep. Rounding can change the choice only if two scores, or a score and a cut, are within
rounding of each other. `sstool.validation.lossless` uses these distances to tell near ties from defects.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssruntime.acceptance.coupled import coupled_sample
from ssruntime.config import DecodeSettings
from ssruntime.sampling.filters import filtered, scores_of
from ssruntime.sampling.noise import CoupledNoise, gumbel


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The decision score of one token in one row, and its distance to the filters' cuts.

    Attributes:
        score: decision score of the token, even if a filter drops it.
        kept: whether the filters keep the token; always True in greedy decoding.
        to_cut: smallest change of the token's score (for top-p also of the probability before it) that
            changes `kept`; infinite without filters.
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
    """Returns the token that autoregressive decoding (mode `plain`) chooses from a row."""
    if settings.is_greedy:
        return int(row.logits.argmax())
    return coupled_sample(row.logits, row.position, settings, CoupledNoise(settings.seed))


def standing(row: Row, settings: DecodeSettings, token: int) -> Standing:
    """Returns the decision score of `token` in a row and its distance to the filters' cuts."""
    if settings.is_greedy:
        return Standing(score=float(row.logits[token]), kept=True, to_cut=math.inf)
    scores = scores_of(row.logits, settings)
    noise = gumbel(settings.seed, row.position, np.array([token], dtype=np.int64))
    ids, _ = filtered(row.logits, settings)
    kept = bool((ids == token).any())
    return Standing(
        score=float(scores[token]) + float(noise[0]),
        kept=kept,
        to_cut=_distance_to_change(scores.astype(np.float64), settings, token, kept),
    )


def _distance_to_change(scores: NDArray[np.float64], settings: DecodeSettings, token: int, kept: bool) -> float:
    """Returns the smallest change that makes the filters drop a kept token, or keep a dropped one.

    A kept token is dropped as soon as it fails its nearest cut. A dropped token is kept only if it passes all
    the cuts that it fails now, so the farthest of these counts.
    """
    distances = _distances_to_cuts(scores, settings, token)
    failed = [distance for distance in distances if distance < 0]
    if kept or not failed:
        return min((abs(distance) for distance in distances), default=math.inf)
    return max(-distance for distance in failed)


def _distances_to_cuts(scores: NDArray[np.float64], settings: DecodeSettings, token: int) -> list[float]:
    """Returns the signed distance of `token` to each active filter's cut: negative if the filter drops it."""
    own = scores[token]
    distances = []
    remaining = np.arange(len(scores))
    if 0 < settings.top_k < len(scores):
        ordered = np.sort(scores)[::-1]
        kth = ordered[settings.top_k - 1]
        distances.append(float(own - kth) if own < kth else _distance_to_dropped(own, scores[scores < kth]))
        remaining = np.flatnonzero((scores >= kth) | (np.arange(len(scores)) == token))
    if settings.top_p < 1.0:
        distances.append(_distance_to_nucleus(scores, remaining, settings.top_p, token))
    if settings.min_p > 0.0:
        distances.append(float(own - math.log(settings.min_p)))
    return distances


def _distance_to_dropped(score: np.float64, dropped: NDArray[np.float64]) -> float:
    """Returns the distance of a kept score to the best dropped one; infinite if nothing is dropped."""
    return float(score - dropped.max()) if len(dropped) else math.inf


def _distance_to_nucleus(scores: NDArray[np.float64], remaining: NDArray[np.int64], top_p: float, token: int) -> float:
    """Returns the signed distance of `token` to the cut of top-p, negative if it is outside.

    It is the smaller one of two distances: of the probability before the token to `top_p`, and of the token's
    score to the nearest score on the other side of the cut.
    """
    order = remaining[np.argsort(-scores[remaining], kind="stable")]
    weights = np.exp(scores[order])
    before = (np.cumsum(weights) - weights) / weights.sum()
    rank = int(np.flatnonzero(order == token)[0])
    inside = before < top_p
    mass = abs(float(before[rank]) - top_p)
    if inside[rank]:
        return min(mass, _distance_to_dropped(scores[token], scores[order[~inside]]))
    return -min(mass, float(scores[order[inside]].min() - scores[token]))
