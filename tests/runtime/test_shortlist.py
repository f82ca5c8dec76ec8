"""A sure token of the shortlist is the token of the whole row, and most peaked rows are sure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ssruntime import GenerationConfig
from ssruntime.acceptance.coupled import coupled_sample
from ssruntime.config import CheckpointDefaults, DecodeSettings, complete
from ssruntime.sampling.noise import CoupledNoise
from ssruntime.sampling.shortlist import Pick, Shortlist
from tests.runtime.scripted import step_of

rows = st.tuples(st.integers(1, 600), st.integers(0, 2**32), st.sampled_from([0.001, 0.5, 2.0, 4.0, 10.0])).map(
    lambda t: (t[2] * np.random.default_rng(t[1]).standard_normal(t[0])).astype(np.float32)
)
tied_rows = st.lists(st.sampled_from([-4.0, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=200).map(lambda x: np.array(x, dtype=np.float32))
filters = st.fixed_dictionaries(
    {"temperature": st.one_of(st.sampled_from([1e-300, 1e-6, 0.3, 0.8, 1.0]), st.floats(0.05, 1.0))},
    optional={
        "top_k": st.sampled_from([1, 2, 5, 40, 64, 65, 1000]),
        "top_p": st.floats(0.01, 0.999),
        "min_p": st.sampled_from([1e-4, 0.01, 0.1, 0.5, 1.0]),
    },
)


def settings_of(**how: object) -> DecodeSettings:
    return complete(GenerationConfig.from_mapping({"temperature": 1.0, "seed": 0, **how}), CheckpointDefaults(), None)


def shortlisted(logits: NDArray[np.float32], how: DecodeSettings, position: int) -> Pick:
    step = step_of(logits[None])
    return Shortlist(how, CoupledNoise(how.seed)).pick(*step.top(0), step.probability(0), position)


@settings(max_examples=1500)
@given(st.one_of(rows, tied_rows), filters, st.integers(0, 2**40), st.integers(0, 5000))
def test_a_sure_token_is_the_token_of_the_whole_row(logits: NDArray[np.float32], how: dict[str, float], seed: int, position: int) -> None:
    chosen = settings_of(**how, seed=seed)
    if not Shortlist.helps(chosen):
        return
    pick = shortlisted(logits, chosen, position)
    if pick.is_sure:
        assert pick.token == coupled_sample(logits, position, chosen, CoupledNoise(seed))


@pytest.mark.parametrize(
    ("how", "least"),
    [
        ({"top_p": 0.95, "temperature": 0.8}, 0.8),
        ({"top_p": 0.9, "temperature": 1.0}, 0.7),
        ({"top_k": 20, "top_p": 0.8, "temperature": 0.6}, 0.9),
        ({"top_k": 20}, 0.99),
        ({"top_k": 50, "top_p": 0.95}, 0.9),
        ({"min_p": 0.05}, 0.99),
    ],
)
def test_most_peaked_rows_are_sure(how: dict[str, float], least: float) -> None:
    random = np.random.default_rng(5)
    sure = [shortlisted((4 * random.standard_normal(4096)).astype(np.float32), settings_of(**how), p).is_sure for p in range(400)]
    assert np.mean(sure) >= least


@pytest.mark.parametrize("how", [{"top_p": 0.95}, {"top_k": 100}, {"min_p": 1e-6}])
def test_no_row_is_sure_if_the_filters_keep_tokens_beyond_the_shortlist(how: dict[str, float]) -> None:
    random = np.random.default_rng(5)
    assert not any(shortlisted(random.standard_normal(4096).astype(np.float32), settings_of(**how), p).is_sure for p in range(50))


@pytest.mark.parametrize("how", [{}, {"temperature": 1.2, "top_p": 0.5}, {"temperature": 0.5}])
def test_the_shortlist_is_not_used_with_settings_that_never_give_a_sure_token(how: dict[str, float]) -> None:
    assert not Shortlist.helps(settings_of(**how))


def test_a_token_at_the_edge_of_the_nucleus_is_not_sure() -> None:
    """With four equal weights and top_p 0.75, rounding decides whether three tokens are enough."""
    logits = np.zeros(4, dtype=np.float32)
    how = settings_of(top_p=0.75)
    picks = [shortlisted(logits, how, p) for p in range(200)]
    assert {p.token for p in picks if p.is_sure} <= {0, 1, 2}
    assert not any(p.is_sure for p in picks if p.token == 3)
