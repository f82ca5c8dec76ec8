"""The acceptance of acceptance: fitted, learned online, and shifted for a text."""

from __future__ import annotations

import numpy as np
import pytest

from ssruntime.planning.acceptance import (
    UNKNOWN,
    AcceptanceModel,
    Calibration,
    Evidence,
    RequestAcceptance,
    features,
    fit,
    outcomes,
    sigmoid,
)

TRUE = (0.4, 0.6, 0.3, 0.5)


def observed(count: int, weights: tuple[float, ...], seed: int = 0) -> list[tuple[Evidence, bool]]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        confidence = float(random.uniform(0.05, 0.999))
        evidence = Evidence(confidence, confidence * float(random.uniform(0.2, 1.0)), float(random.exponential(1.0)))
        acceptance = float(sigmoid(np.array(np.dot(features(evidence), weights))))
        found.append((evidence, bool(random.random() < acceptance)))
    return found


def test_a_fit_finds_the_weights() -> None:
    calibration = fit(observed(20_000, TRUE))
    assert calibration.weights == pytest.approx(TRUE, abs=0.1)
    assert list(calibration.log_odds) == sorted(calibration.log_odds)


def test_without_tokens_nothing_is_known() -> None:
    assert fit([]) == UNKNOWN
    few = fit([(Evidence(0.9, 0.9, 1.0), True)])
    assert few.weights == pytest.approx(UNKNOWN.weights, abs=0.3)


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("confidence", [0.001, 0.5, 0.999])
def test_a_fit_to_one_outcome_stays_moderate(confidence: float, accepted: bool) -> None:
    found = fit([(Evidence(confidence, confidence, 0.0), accepted)] * 200)
    assert max(map(abs, found.weights)) < 5
    assert (found.log_odds[0] > 0) == accepted


def test_a_round_is_learned_once() -> None:
    """A round that ends before it begins, as at the end of a text, must not repeat the one before."""
    model = AcceptanceModel(UNKNOWN, learns=True)
    acceptance = RequestAcceptance(model)
    acceptance.begin()
    acceptance.add(Evidence(0.9, 0.9, 2.0))
    acceptance.observe(1, 2)
    shift, learned = acceptance.shift, list(model._observed)
    assert [was for _, was in learned] == [True]
    acceptance.observe(0, 1)
    assert (acceptance.shift, model._observed) == (shift, learned)


def test_a_draft_whose_logits_overflowed_spoils_nothing() -> None:
    model = AcceptanceModel(UNKNOWN, learns=True)
    acceptance = RequestAcceptance(model)
    for _ in range(100):
        acceptance.begin()
        assert acceptance.add(Evidence(0.9, 0.9, 1.0)) > 0.5
        assert acceptance.add(Evidence(float("nan"), float("nan"), float("nan"))) == 0.0
        acceptance.observe(1, 2)
    assert np.isfinite([acceptance.shift, *model.weights]).all()


def test_tokens_after_a_rejected_one_are_no_outcomes() -> None:
    assert outcomes("abc", 0) == [("a", False)]
    assert outcomes("abc", 2) == [("a", True), ("b", True), ("c", False)]
    assert outcomes("abc", 3) == [("a", True), ("b", True), ("c", True)]
    assert outcomes("", 0) == []


def test_extreme_evidence_gives_finite_features() -> None:
    for evidence in (Evidence(1.0, 0.0, 0.0), Evidence(0.0, 0.0, 10.0)):
        assert np.isfinite(features(evidence)).all()


def test_the_shared_model_learns_from_requests() -> None:
    model = AcceptanceModel(UNKNOWN, learns=True)
    model.learn([(features(evidence), was) for evidence, was in observed(30_000, TRUE)])
    for evidence, was in observed(6400, TRUE, seed=1):
        model.learn([(features(evidence), was)])
    assert model.weights == pytest.approx(TRUE, abs=0.25)
    assert model.version > 0


def test_a_model_that_does_not_learn_stays() -> None:
    model = AcceptanceModel(UNKNOWN, learns=False)
    model.learn([(features(evidence), was) for evidence, was in observed(1000, TRUE)])
    assert (model.weights, model.version) == (UNKNOWN.weights, 0)


@pytest.mark.parametrize(("accepted", "sign"), [(True, 1), (False, -1)])
def test_the_shift_follows_the_text(accepted: bool, sign: int) -> None:
    acceptance = RequestAcceptance(AcceptanceModel(Calibration(weights=(0.0, 1.0, 0.0, 0.0), log_odds=(0.0,)), learns=False))
    evidence = Evidence(0.5, 0.5, 1.0)
    before = acceptance.add(evidence)
    for _ in range(40):
        acceptance.begin()
        acceptance.add(evidence)
        acceptance.observe(int(accepted), 1 + accepted)
    acceptance.begin()
    assert before == pytest.approx(0.5)
    assert sign * (acceptance.add(evidence) - before) > 0.2
    assert sign * acceptance.shift > 0.5


def test_tokens_after_a_rejected_one_say_nothing() -> None:
    one, more = (RequestAcceptance(AcceptanceModel(UNKNOWN, learns=False)) for _ in range(2))
    evidence = Evidence(0.6, 0.6, 1.0)
    for acceptance, drafted in ((one, 1), (more, 5)):
        acceptance.begin()
        for _ in range(drafted):
            acceptance.add(evidence)
        acceptance.observe(0, 1)
    assert one.shift == more.shift < 0
