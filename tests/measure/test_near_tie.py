"""A token's score, and its distance to the cuts of top-k, top-p and min-p, agree with the filters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssruntime.config import DecodeSettings
from ssruntime.sampling.filters import filtered
from ssruntime.sampling.noise import gumbel
from ssruntime.stopping import FixedRule
from sstool.validation.near_tie import Row, decide, standing


def settings_of(*, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> DecodeSettings:
    return DecodeSettings(
        max_new_tokens=8, mode="speculative", stopping=FixedRule(max_draft=4), max_alternatives=2,
        temperature=temperature, top_k=top_k, min_new_tokens=0, stop_token_ids=frozenset(), skip_special_tokens=True,
        top_p=top_p, min_p=min_p, sampling="coupled", seed=7, stop=(), eos_token_ids=frozenset(),
    )  # fmt: skip


def row_of(probabilities: list[float]) -> Row:
    return Row(logits=np.log(np.array(probabilities, dtype=np.float32)), position=9)


def test_greedy_scores_are_the_logits_and_nothing_is_cut() -> None:
    row = Row(logits=np.array([0.5, 2.0, -1.0], dtype=np.float32), position=0)
    settings = settings_of(temperature=0.0)
    assert decide(row, settings) == 1
    assert standing(row, settings, 2).score == -1.0
    assert standing(row, settings, 2).kept
    assert standing(row, settings, 2).to_cut == math.inf


def test_sampled_scores_hold_temperature_and_noise() -> None:
    row = row_of([0.5, 0.3, 0.2])
    noise = gumbel(7, 9, np.arange(3, dtype=np.int64))
    settings = settings_of(temperature=0.5)
    expected = [2 * math.log(p / 0.5) + float(g) for p, g in zip([0.5, 0.3, 0.2], noise, strict=True)]
    assert [standing(row, settings, t).score for t in range(3)] == pytest.approx(expected, abs=1e-5)
    assert decide(row, settings) == int(np.argmax(expected))


def test_a_temperature_near_0_leaves_scores_finite_for_the_best_token() -> None:
    found = standing(row_of([0.5, 0.3, 0.2]), settings_of(temperature=1e-300), 0)
    assert found.kept
    assert math.isfinite(found.score)


@pytest.mark.parametrize(
    ("token", "kept", "to_cut"), [(0, True, math.log(0.4 / 0.1)), (1, True, math.log(0.3 / 0.1)), (3, False, math.log(2))]
)
def test_distance_to_the_top_k_cut_is_to_the_nearest_token_across_it(token: int, kept: bool, to_cut: float) -> None:
    found = standing(row_of([0.4, 0.3, 0.2, 0.1]), settings_of(top_k=3), token)
    assert found.kept is kept
    assert found.to_cut == pytest.approx(to_cut, abs=1e-5)


@pytest.mark.parametrize(("token", "kept", "to_cut"), [(1, True, 0.3), (2, True, 0.001), (3, False, 0.2)])
def test_distance_to_the_top_p_cut_is_the_probability_before_it(token: int, kept: bool, to_cut: float) -> None:
    found = standing(row_of([0.4, 0.3, 0.2, 0.1]), settings_of(top_p=0.701), token)
    assert found.kept is kept
    assert found.to_cut == pytest.approx(to_cut, abs=2e-3)


@pytest.mark.parametrize(("token", "kept", "to_cut"), [(1, True, math.log(0.3 / 0.2)), (3, False, math.log(2.0))])
def test_distance_to_the_min_p_cut_is_in_scores(token: int, kept: bool, to_cut: float) -> None:
    found = standing(row_of([0.4, 0.3, 0.2, 0.1]), settings_of(min_p=0.5), token)
    assert found.kept is kept
    assert found.to_cut == pytest.approx(to_cut, abs=1e-5)


def test_a_token_beyond_two_cuts_has_the_larger_distance() -> None:
    found = standing(row_of([0.4, 0.3, 0.2, 0.1]), settings_of(top_k=3, min_p=0.9), 3)
    assert found.to_cut == pytest.approx(math.log(0.9 * 0.4 / 0.1), abs=1e-5)


@given(
    logits=st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True),
    top_k=st.integers(0, 6),
    top_p=st.sampled_from([0.3, 0.55, 0.81, 0.973, 1.0]),
    min_p=st.sampled_from([0.0, 0.013, 0.21]),
    temperature=st.sampled_from([0.7, 1.0, 1.3]),
)
def test_a_score_that_moves_across_its_cut_changes_what_is_kept(
    logits: list[int], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    """A change of a token's score by more than its distance drops a kept token, or keeps a dropped one.

    Distances to the cut of top-p are in probability, so cases with top-p are not moved.
    """
    settings = settings_of(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    row = Row(logits=np.array(logits, dtype=np.float32) / 4, position=3)
    kept = set(filtered(row.logits, settings)[0].tolist())
    for token in range(len(logits)):
        found = standing(row, settings, token)
        assert found.kept == (token in kept)
        assert found.to_cut >= 0.0
        if top_p < 1.0 or math.isinf(found.to_cut) or row.logits[token] == row.logits.max():
            continue
        shift = np.zeros(len(logits), dtype=np.float32)
        shift[token] = (found.to_cut + 1e-4) * temperature * (-1 if found.kept else 1)
        moved = set(filtered(row.logits + shift, settings)[0].tolist())
        assert (token in moved) != found.kept
