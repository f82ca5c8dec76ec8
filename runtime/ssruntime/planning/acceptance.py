"""The probability that a draft token is accepted: a logistic regression on what is known when it is drafted.

Three features are known then: the draft's confidence (the probability of its best token), the probability of
the drafted token itself, and its *margin*, by which its score leads that of the next-best token. In coupled
sampling the score includes the noise that draft and target share. So a token that leads by far in the draft
is likely to lead in the target too.

The regression is fitted when an artifact is exported. While requests run, it learns at two speeds: the
weights slowly, from all requests of an engine, and an offset of the log-odds quickly, for each request, since
some texts are easier to draft than others.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssruntime.errors import SelfSpecError
from ssruntime.strict_reader import read_record

T = TypeVar("T")

_LEAST_MARGIN: Final = 0.01
NUM_FEATURES: Final = 4
_LEAST: Final = 1e-4
"""Probabilities closer than this to 0 or 1 count as this."""
_BATCH: Final = 32
"""Number of draft tokens in each update of the weights."""
_FIRST_PRECISION: Final = 20.0
"""Precision (inverse variance) of each weight of a calibration, as after a few hundred draft tokens."""
_MEMORY: Final = 0.99
"""Factor by which the precision of the weights decays with each batch, so that old texts count less."""
_RECENT: Final = 256
"""Number of latest draft tokens whose log-odds make up the typical ones."""
_QUANTILES: Final = 12
_EXTRA_RATE: Final = 1 / 64
"""Weight of one round in the running mean of the tokens that alternatives add."""
_SHIFT_VARIANCE: Final = 0.3
"""Variance of the shift between requests, in squared nats."""
_DRIFT: Final = 0.003
"""Growth of that variance with each token that a request emits, in squared nats."""
_MOST_SHIFT: Final = 4.0
_MOST_STEP: Final = 0.5
"""Most that a weight changes in one step of a fit."""
_STEPS: Final = 50
_STEPS_ONLINE: Final = 3
_NOTABLE: Final = 0.2
"""Mean change of the typical log-odds, in nats, from which on draft plans are computed again."""


class Evidence(NamedTuple):
    """What is known of a draft token when it is drafted.

    Attributes:
        confidence: the draft's probability of its best token, at temperature 1.
        probability: the draft's probability of the token, at temperature 1.
        margin: distance in nats of the token's score from the next-best token's, at most
            `sampling.filters.MOST_MARGIN`.
    """

    confidence: float
    probability: float
    margin: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The logistic regression of one draft, as fitted at export.

    Attributes:
        weights: coefficients of the intercept, the log-odds of the confidence, the log-odds of the token's
            probability, and the logarithm of the margin.
        log_odds: log-odds of acceptance of typical draft tokens: evenly spaced quantiles, ascending.
    """

    weights: tuple[float, ...]
    log_odds: tuple[float, ...]

    @classmethod
    def read(cls, data: object, *, where: str, error: type[SelfSpecError]) -> Calibration:
        """Returns the calibration that a mapping holds.

        Raises:
            SelfSpecError: of class `error`, if a value has another type, or the numbers fit no model.
        """
        found = read_record(cls, data, where=where, error=error)
        is_finite = all(map(math.isfinite, (*found.weights, *found.log_odds)))
        if len(found.weights) != NUM_FEATURES or not found.log_odds or not is_finite:
            raise error(
                f"{where}: expected {NUM_FEATURES} weights and at least one value of log_odds, all of them finite", "export the model again"
            )
        return found


UNKNOWN: Final = Calibration(weights=(-0.2, 0.5, 0.2, 0.3), log_odds=(-1.5, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0))
"""The regression for a draft that was never measured."""


def features(evidence: Evidence) -> tuple[float, float, float, float]:
    """Returns the features of the regression, in the order of `Calibration.weights`."""
    confidence, probability, margin = evidence
    return 1.0, _log_odds(confidence), _log_odds(probability), math.log(margin + _LEAST_MARGIN)


def _log_odds(probability: float) -> float:
    if probability > 1.0 - _LEAST:
        probability = 1.0 - _LEAST
    elif probability < _LEAST:
        probability = _LEAST
    return math.log(probability / (1.0 - probability))


def fit(observed: Sequence[tuple[Evidence, bool]]) -> Calibration:
    """Returns the model that fits which tokens were accepted; with few tokens it stays close to `UNKNOWN`.

    Args:
        observed: draft tokens that were reached, in any order, and whether each was accepted.
    """
    if not observed:
        return UNKNOWN
    known = np.array([features(evidence) for evidence, _ in observed])
    accepted = np.array([was for _, was in observed], dtype=np.float64)
    weights = np.array(UNKNOWN.weights)
    prior = np.eye(len(weights))
    for _ in range(_STEPS):
        weights, _ = _newton(weights, np.array(UNKNOWN.weights), prior, known, accepted)
    return Calibration(weights=tuple(weights.tolist()), log_odds=tuple(_quantiles(known @ weights).tolist()))


def _newton(
    weights: NDArray[np.float64],
    mean: NDArray[np.float64],
    prior: NDArray[np.float64],
    known: NDArray[np.float64],
    accepted: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the weights after a step of Newton's method, and the precision of the result."""
    expected = sigmoid(known @ weights)
    precision = prior + (known * (expected * (1 - expected))[:, None]).T @ known
    step = np.linalg.solve(precision, known.T @ (accepted - expected) - prior @ (weights - mean))
    # Far from the best weights, a whole step can lead further away.
    return weights + step * min(1.0, _MOST_STEP / max(float(np.abs(step).max()), 1e-9)), precision


def _quantiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.quantile(values, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    return found


def sigmoid(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the probabilities of log-odds."""
    probabilities: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(log_odds, -30.0, 30.0)))
    return probabilities


def outcomes(drafted: Sequence[T], accepted: int) -> list[tuple[T, bool]]:
    """Returns the draft tokens that verify reached, and whether each was accepted.

    A token after a rejected one says nothing.

    Args:
        drafted: the tokens of a round's draft sequence.
        accepted: how many of these were accepted.
    """
    return [(token, place < accepted) for place, token in enumerate(drafted[: accepted + 1])]


class AcceptanceModel:
    """The regression that all requests of an engine share and update."""

    def __init__(self, calibration: Calibration, *, learns: bool) -> None:
        self.weights = calibration.weights
        self.version = 0
        """Rises when the typical log-odds have changed notably."""
        self.extra = 0.0
        """Tokens that alternatives add to a round with a draft, on average."""
        self._learns = learns
        self._precision = _FIRST_PRECISION * np.eye(len(calibration.weights))
        repeats = -(-_RECENT // len(calibration.log_odds))
        self._recent = np.tile(np.array(calibration.log_odds), repeats)[:_RECENT]
        self._next = 0
        self._usual = _quantiles(self._recent)
        self._observed: list[tuple[tuple[float, ...], bool]] = []
        self._lock = threading.Lock()

    def typical_probabilities(self, shift: float) -> NDArray[np.float64]:
        """Returns quantiles of the acceptance probability of typical draft tokens, float64[n].

        Args:
            shift: offset of their log-odds, in nats.
        """
        return sigmoid(self._usual + shift)

    def add_round(self, extra: int) -> None:
        """Records how many tokens alternatives added to a round with a draft."""
        if self._learns:
            self.extra += _EXTRA_RATE * (extra - self.extra)

    def learn(self, observed: Sequence[tuple[tuple[float, ...], bool]]) -> None:
        """Records draft tokens that were reached, by their `features`, and whether each was accepted."""
        if not self._learns:
            return
        with self._lock:
            self._observed += observed
            if len(self._observed) < _BATCH:
                return
            batch, self._observed = self._observed, []
            self._update(batch)

    def _update(self, batch: Sequence[tuple[tuple[float, ...], bool]]) -> None:
        known = np.array([found for found, _ in batch])
        accepted = np.array([was for _, was in batch], dtype=np.float64)
        before, prior = np.array(self.weights), _MEMORY * self._precision
        weights = before
        for _ in range(_STEPS_ONLINE):
            weights, self._precision = _newton(weights, before, prior, known, accepted)
        places = (self._next + np.arange(len(batch))) % _RECENT
        self._recent[places], self._next = known @ weights, int(places[-1]) + 1
        self.weights = tuple(weights.tolist())
        usual = _quantiles(self._recent)
        if np.abs(usual - self._usual).mean() > _NOTABLE:
            self._usual = usual
            self.version += 1


class RequestAcceptance:
    """The acceptance probabilities in one request: the shared regression, with an offset for its text."""

    def __init__(self, model: AcceptanceModel) -> None:
        self.shift = 0.0
        self._model = model
        self._variance = _SHIFT_VARIANCE
        self._round: list[tuple[float, tuple[float, ...]]] = []

    def begin(self) -> None:
        """Begins a round: forgets the tokens of the last one."""
        if self._round:
            self._round = []

    def add(self, evidence: Evidence) -> float:
        """Returns the acceptance probability of the next draft token of the round."""
        found = features(evidence)
        one, first, second, third = self._model.weights
        log_odds = self.shift + one + first * found[1] + second * found[2] + third * found[3]
        if not math.isfinite(log_odds):
            return 0.0  # the draft's logits overflowed, as they may in 16 bits: nothing follows from that
        probability = 1.0 / (1.0 + math.exp(-log_odds)) if log_odds > -30.0 else 0.0
        self._round.append((probability, found))
        return probability

    def observe(self, accepted: int, emitted: int) -> None:
        """Learns from a round.

        The shift is that of an extended Kalman filter.

        Args:
            accepted: number of tokens of the draft sequence that were accepted.
            emitted: number of tokens that the round emitted.
        """
        self._variance = min(self._variance + _DRIFT * emitted, _SHIFT_VARIANCE)
        reached = outcomes(self._round, accepted)
        self._round = []  # the next round may end before it begins
        for (probability, _), was_accepted in reached:
            gain = self._variance / (1.0 + self._variance * probability * (1.0 - probability))
            self.shift += gain * (was_accepted - probability)
            self._variance = gain
        self.shift = max(-_MOST_SHIFT, min(_MOST_SHIFT, self.shift))
        if reached:
            self._model.add_round(emitted - accepted - 1)
            self._model.learn([(found, was_accepted) for (_, found), was_accepted in reached])
