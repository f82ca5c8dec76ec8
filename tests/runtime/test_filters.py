"""The sampling filters keep the tokens that their definitions keep, and that transformers keeps."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ssruntime import GenerationConfig
from ssruntime.acceptance import CoupledAcceptance
from ssruntime.config import CheckpointDefaults, DecodeSettings, complete
from ssruntime.sampling.filters import certain_from, filtered, probabilities
from tests.runtime.scripted import step_of

CUT = 1e-5
"""Distance from a filter's cut-off below which rounding decides; such rows are not compared."""


def settings_of(**how: object) -> DecodeSettings:
    return complete(GenerationConfig.from_mapping({"temperature": 1.0, "seed": 0, **how}), CheckpointDefaults(), None)


def reference(logits: NDArray[np.float32], how: DecodeSettings) -> tuple[dict[int, float], bool]:
    """Returns each kept token's probability in float64, and whether a token is too close to a cut-off."""
    scores = logits.astype(np.float64) / how.temperature
    is_near = False
    kept = list(range(len(scores)))
    if 0 < how.top_k < len(scores):
        kth = sorted(scores)[-how.top_k]
        kept = [i for i in kept if scores[i] >= kth]
        is_near |= any(0 < abs(scores[i] - kth) < CUT for i in range(len(scores)))
    weights = np.exp(scores - scores.max())
    if how.top_p < 1.0:
        total = sum(weights[i] for i in kept)
        nucleus: list[int] = []
        below = 0.0
        for i in sorted(kept, key=lambda i: -weights[i]):
            is_near |= abs(below / total - how.top_p) < CUT
            if below / total >= how.top_p:
                is_near |= weights[nucleus[-1]] - weights[i] < CUT * weights[nucleus[-1]]
                break
            nucleus.append(i)
            below += weights[i]
        kept = nucleus
    if how.min_p > 0.0:
        is_near |= any(abs(weights[i] - how.min_p) < CUT for i in kept)
        kept = [i for i in kept if weights[i] >= how.min_p]
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}, is_near


def found(logits: NDArray[np.float32], how: DecodeSettings) -> dict[int, float]:
    ids, weights = filtered(logits, how)
    probs = probabilities(weights)
    assert probs.dtype == np.float64
    assert probs.sum() == pytest.approx(1.0, abs=1e-12)
    assert len(set(ids.tolist())) == len(ids) >= 1
    return dict(zip(ids.tolist(), probs.tolist(), strict=True))


def assert_same(left: dict[int, float], right: dict[int, float]) -> None:
    for token in {*left, *right}:
        # Tokens whose weight is 0 in fp32 may be left out.
        assert left.get(token, 0.0) == pytest.approx(right.get(token, 0.0), rel=1e-4, abs=1e-30)


rows = st.tuples(st.integers(1, 400), st.integers(0, 2**32), st.sampled_from([0.01, 0.5, 2.0, 10.0])).map(
    lambda t: (t[2] * np.random.default_rng(t[1]).standard_normal(t[0])).astype(np.float32)
)
filters = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.05, 0.3, 0.8, 1.0, 1.5, 4.0]),
        "top_k": st.sampled_from([0, 1, 2, 5, 40, 1000]),
        "top_p": st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
        "min_p": st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
    }
)


@settings(max_examples=400)
@given(rows, filters)
def test_filters_match_their_definitions(logits: NDArray[np.float32], how: dict[str, float]) -> None:
    chosen = settings_of(**how)
    expected, is_near = reference(logits, chosen)
    assume(not is_near)
    assert_same(found(logits, chosen), expected)


@settings(max_examples=150)
@given(rows.filter(lambda row: len(row) > 1), filters)
def test_filters_match_transformers(logits: NDArray[np.float32], how: dict[str, float]) -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as hf

    chosen = settings_of(**how)
    assume(not reference(logits, chosen)[1])
    scores = torch.from_numpy(logits)[None]
    warpers: list[Any] = [hf.TemperatureLogitsWarper(chosen.temperature)]
    if chosen.top_k:
        warpers.append(hf.TopKLogitsWarper(chosen.top_k))
    if chosen.top_p < 1.0:
        warpers.append(hf.TopPLogitsWarper(chosen.top_p))
    if chosen.min_p > 0.0:
        warpers.append(hf.MinPLogitsWarper(chosen.min_p))
    for warper in warpers:
        scores = warper(None, scores)
    probs = torch.softmax(scores[0].double(), -1)
    assert_same(found(logits, chosen), {i: float(p) for i, p in enumerate(probs) if p > 0})


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"top_k": 2}, {0, 1, 2}),  # 1 and 2 tie for the second place: both are kept, as in transformers
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 1}, {0}),
        ({"top_k": 6}, {0, 1, 2, 3, 4, 5}),
        ({"top_p": 1e-9}, {0}),  # the best token is always kept
        ({"min_p": 1.0}, {0}),
        ({"min_p": 0.3}, {0, 1, 2}),
    ],
)
def test_filters_keep_ties_and_always_the_best_token(how: dict[str, float], expected: set[int]) -> None:
    logits = np.log(np.array([4.0, 2.0, 2.0, 1.0, 0.5, 0.5], dtype=np.float32))
    assert set(found(logits, settings_of(**how))) == expected


def test_a_tie_at_the_nucleus_edge_goes_to_the_lower_id() -> None:
    logits = np.log(np.array([1.0, 1.0, 2.0, 1.0], dtype=np.float32))
    assert set(found(logits, settings_of(top_p=0.5))) <= {2, 0}
    assert set(found(logits, settings_of(top_p=0.55))) == {2, 0}
    assert set(found(np.zeros(100, dtype=np.float32), settings_of(top_p=0.095))) == set(range(10))


@pytest.mark.parametrize("vocab", [33, 4096, 50_000])
@pytest.mark.parametrize("how", [{"top_p": 0.9}, {"top_p": 0.9999}, {"top_p": 0.9999999}, {"top_p": 0.5, "top_k": 3000}, {"min_p": 1e-4}])
def test_filters_match_their_definitions_on_flat_rows_of_large_vocabularies(vocab: int, how: dict[str, float]) -> None:
    """In flat rows, the filters keep even tokens of very low probability."""
    logits = (0.01 * np.random.default_rng(3).standard_normal(vocab)).astype(np.float32)
    chosen = settings_of(**how)
    probs, (expected, _) = found(logits, chosen), reference(logits, chosen)
    assert len(probs) == pytest.approx(len(expected), rel=1e-4, abs=1)
    assert sum(probs.get(i, 0.0) for i in expected) == pytest.approx(1.0, abs=1e-3)


@settings(max_examples=60)
@given(rows, st.floats(min_value=0, max_value=1e-3, exclude_min=True), filters)
@example(np.array([1.0, 2.0, 2.0], dtype=np.float32), 5e-324, {})
@example(np.array([-300.0, 2.0, 1.0], dtype=np.float32), 1e-39, {"top_p": 0.5})
@example(np.array([0.0, 2.0, 1.0], dtype=np.float32), 1e-40, {"top_k": 2})
def test_a_temperature_close_to_zero_is_greedy(logits: NDArray[np.float32], temperature: float, how: dict[str, float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probs = found(logits, settings_of(**{**how, "temperature": min(temperature, 1e-7)}))
    best = float(logits.max())
    heavy = {i for i, p in probs.items() if p > 1e-3}
    assert all(best - float(logits[i]) < 1e-5 * max(1.0, abs(best)) for i in heavy)


@pytest.mark.parametrize("temperature", [1e6, 1e38, 1e300])
def test_a_huge_temperature_is_uniform(temperature: float) -> None:
    probs = found(np.array([1.0, -50.0, 30.0], dtype=np.float32), settings_of(temperature=temperature))
    assert list(probs.values()) == pytest.approx([1 / 3] * 3, abs=1e-4)


@settings(max_examples=300)
@given(rows, filters)
def test_a_row_is_certain_only_if_the_filters_keep_one_token(logits: NDArray[np.float32], how: dict[str, float]) -> None:
    """Rows with a tie for the best token are left out.

    There top-k 1 keeps several tokens, but each mode takes the one that the graph outputs.
    """
    chosen = settings_of(**how)
    probs = np.exp(logits.astype(np.float64) - logits.max())
    confidence = float((probs / probs.sum()).max())
    assume(len(logits) < 2 or np.diff(np.sort(logits))[-1] > 0)
    if confidence >= certain_from(chosen):
        assert set(found(logits, chosen)) == {int(logits.argmax())}


@settings(max_examples=100)
@given(rows, filters, st.integers(0, 2**62))
def test_the_token_of_a_certain_row_is_the_token_that_sampling_takes(logits: NDArray[np.float32], how: dict[str, float], seed: int) -> None:
    chosen = dataclasses.replace(settings_of(**how), seed=seed)
    assume(len(logits) < 2 or np.diff(np.sort(logits))[-1] > CUT)
    step = step_of(logits[None])
    certain = CoupledAcceptance(chosen).sample(step, 3)
    step.confidence[0] = 1e-9  # so low that the filters must run
    sampled = CoupledAcceptance(chosen).sample(step, 3)
    assert certain == sampled
