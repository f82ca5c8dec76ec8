"""Stopping policies end drafts as defined: by the adaptive formula, by a fixed threshold, or never."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssruntime import GenerationConfig, Trace
from ssruntime.errors import ConfigError, RecipeError
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.planning.acceptance import Evidence
from ssruntime.planning.planner import unlearned
from ssruntime.stopping import (
    AdaptiveRule,
    AdaptiveStopping,
    ConfidenceRule,
    ConfidenceStopping,
    FixedRule,
    FixedStopping,
    OptimalRule,
    StoppingRule,
)
from tests.runtime.conftest import OpenScript
from tests.runtime.scripted import Script, phrase_table


def sure(confidence: float) -> Evidence:
    """Returns what is known of the best token of a draft."""
    return Evidence(confidence, confidence, 1.0)


def test_adaptive_stopping_matches_values_computed_by_hand() -> None:
    """The paper's rule with beta1 0.5, beta2 0.9, step 0.01, target 0.9, computed by hand."""
    policy = AdaptiveStopping(0.6, max_draft=4)
    # rate 1/2: m = 0.5 (the first rate itself) < 0.9, so t' = 0.61 and t = 0.9 * 0.6 + 0.1 * 0.61
    policy.observe(2, 1, 1)
    assert policy.threshold == pytest.approx(0.601, abs=1e-12)
    # nothing proposed: unchanged
    policy.observe(0, 0, 1)
    assert policy.threshold == pytest.approx(0.601, abs=1e-12)
    # rate 1: m = 0.75, still below
    policy.observe(3, 3, 1)
    assert policy.threshold == pytest.approx(0.602, abs=1e-12)
    # rate 1: m = 0.875, still below; proposing all of max_draft makes no difference then
    policy.observe(4, 4, 1)
    assert policy.threshold == pytest.approx(0.603, abs=1e-12)
    # rate 1: m = 0.9375 is enough, and the draft had its largest length: unchanged
    policy.observe(4, 4, 1)
    assert policy.threshold == pytest.approx(0.603, abs=1e-12)
    # rate 1: m = 0.96875 is enough, and the draft stopped early: down
    policy.observe(1, 1, 1)
    assert policy.threshold == pytest.approx(0.602, abs=1e-12)
    # rate 0: m = 0.484375: up
    policy.observe(1, 0, 1)
    assert policy.threshold == pytest.approx(0.603, abs=1e-12)
    assert not policy.goes_on(1, sure(0.6029))
    assert policy.goes_on(1, sure(0.6031))


@given(
    start=st.floats(0, 1),
    max_draft=st.integers(1, 15),
    rounds=st.lists(st.integers(0, 15).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=60),
)
def test_adaptive_stopping_follows_the_formula_and_stays_in_range(start: float, max_draft: int, rounds: list[tuple[int, int]]) -> None:
    policy = AdaptiveStopping(start, max_draft=max_draft)
    smoothed: float | None = None
    threshold = start
    for proposed, accepted in rounds:
        policy.observe(proposed, accepted, 1)
        if proposed:
            rate = accepted / proposed
            smoothed = rate if smoothed is None else 0.5 * smoothed + 0.5 * rate
            target = threshold + 0.01 if smoothed < 0.9 else threshold if proposed == max_draft else threshold - 0.01
            threshold = min(1.0, max(0.0, 0.9 * threshold + 0.1 * target))
        assert policy.threshold == pytest.approx(threshold, abs=1e-12)
        assert 0 <= policy.threshold <= 1


def test_the_adaptive_threshold_is_clamped() -> None:
    high, low = AdaptiveStopping(0.9995, max_draft=4), AdaptiveStopping(0.0005, max_draft=4)
    for _ in range(5):
        high.observe(4, 0, 1)
        low.observe(3, 3, 1)
    assert (high.threshold, low.threshold) == (1.0, 0.0)


def test_fixed_stopping_never_stops_and_confidence_stops_below_its_threshold() -> None:
    fixed, confidence = FixedStopping(), ConfidenceStopping(0.5)
    for policy in (fixed, confidence):
        policy.observe(3, 0, 1)
    assert fixed.goes_on(1, sure(0.0))
    assert [confidence.goes_on(1, sure(c)) for c in (0.0, 0.4999, 0.5, 1.0)] == [False, False, True, True]


# Ten positions. The draft predicts the target's tokens, but after positions 3 and 7 with a confidence of 0.6.
TOKENS = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
UNSURE = (3, 7)


def _tables() -> Script:
    verify = phrase_table(TOKENS, vocab=6)
    draft = verify.copy()
    for position in UNSURE:
        draft[position] = 0.0
        draft[position, :, [TOKENS[position], 0]] = [[5.0], [4.5]]
    return Script(verify=verify, draft=draft)


def test_confidence_stops_after_the_unsure_token_which_is_still_verified(open_script: OpenScript) -> None:
    trace = Trace()
    config = GenerationConfig(exit="confidence", exit_threshold=0.9, max_draft=15, max_new_tokens=21, ignore_eos=True)
    with open_script(_tables()) as engine:
        completion = engine.generate([1], config, trace=trace)
    assert completion.token_ids == (TOKENS * 3)[:21]
    # Prefill gives the token at position 1, where the first draft starts. It stops with the token after
    # position 3.
    assert [(r.start, r.proposed) for r in trace.rounds] == [(1, 3), (5, 3), (9, 5), (15, 3), (19, 1)]
    assert completion.stats.accepted == completion.stats.proposed == 15


def test_threshold_zero_never_stops_and_threshold_one_stops_unless_certain(open_script: OpenScript) -> None:
    with open_script(_tables()) as engine:
        config = GenerationConfig(exit="confidence", exit_threshold=0.0, max_draft=4, max_new_tokens=21, ignore_eos=True)
        assert engine.generate([1], config).stats.proposed == 16
        # A confidence that rounds to 1 does not stop the draft even at threshold 1, because 1 is not below 1.
        certain = engine.generate([1], dataclasses.replace(config, exit_threshold=1.0, max_draft=15)).stats
    assert (certain.rounds, certain.proposed) == (5, 15)


def test_confidence_is_read_before_the_filters(open_script: OpenScript) -> None:
    """With top-k 1 the filtered draft distribution is always certain; the stopping policy must not use it."""
    trace = Trace()
    config = GenerationConfig(
        exit="confidence", exit_threshold=0.9, max_draft=15, max_new_tokens=21, ignore_eos=True, temperature=0.01, top_k=1, seed=1
    )
    with open_script(_tables()) as engine:
        engine.generate([1], config, trace=trace)
    assert [r.proposed for r in trace.rounds] == [3, 3, 5, 3, 1]


@pytest.mark.parametrize("max_draft", [1, 2, 5, 15])
@pytest.mark.parametrize("sampling", ["coupled", "rejection"])
def test_fixed_stopping_proposes_max_draft_tokens_within_the_length_limit(open_script: OpenScript, max_draft: int, sampling: str) -> None:
    random = np.random.default_rng(0)
    table = random.standard_normal((3, 6, 6)).astype(np.float32)
    trace = Trace()
    config = GenerationConfig(
        exit="fixed", max_draft=max_draft, max_new_tokens=40, ignore_eos=True, temperature=1.0, seed=4, sampling=sampling
    )
    with open_script(Script(verify=table, draft=-table)) as engine:
        completion = engine.generate([1], config, trace=trace)
    assert completion.stats.accepted < completion.stats.proposed
    for step in trace.rounds:
        pending = len(step.tree.trunk) - step.proposed
        count = step.start + pending - 1  # the prompt has one token, so this many were generated before the round
        assert step.proposed == min(max_draft, 40 - count - 1, MAX_QUERY_LENGTH - pending)


def test_each_request_has_its_own_stopping_state(open_script: OpenScript) -> None:
    with open_script(_tables()) as engine:
        config = GenerationConfig(exit="adaptive", exit_threshold=0.3, max_draft=6, max_new_tokens=40, ignore_eos=True)
        first = engine.generate([1], config).stats
        again = engine.generate([1], config).stats
    assert (first.rounds, first.proposed) == (again.rounds, again.proposed)


def test_the_tuned_stopping_rule_is_used_unless_the_request_sets_one(open_script: OpenScript) -> None:
    with open_script(_tables(), stopping=ConfidenceRule(exit_threshold=0.25, max_draft=3)) as engine:
        assert engine.settings().stopping == ConfidenceRule(exit_threshold=0.25, max_draft=3)
        chosen = engine.settings(GenerationConfig(exit="adaptive", max_draft=7)).stopping
        # A threshold tuned for one stopping rule has no meaning for another.
        assert chosen == AdaptiveRule(exit_threshold=0.6, max_draft=7)
        assert isinstance(chosen.policy(unlearned(), "greedy"), AdaptiveStopping)
        assert engine.settings(GenerationConfig(exit="fixed")).stopping == FixedRule(max_draft=3)
        assert engine.settings(GenerationConfig(exit_threshold=0.5)).stopping == ConfidenceRule(exit_threshold=0.5, max_draft=3)
    with (
        open_script(_tables(), stopping=FixedRule(max_draft=3)) as engine,
        pytest.raises(ConfigError, match="no meaning with exit 'fixed'") as caught,
    ):
        engine.settings(GenerationConfig(exit_threshold=0.5))
    assert caught.value.hint == "leave exit_threshold out, or also set exit to 'confidence' or 'adaptive'"
    with open_script(_tables()) as engine:
        assert (engine.settings().mode, engine.settings().stopping) == ("auto", OptimalRule(max_draft=12))


def test_a_rule_is_read_as_it_was_written() -> None:
    for rule in (FixedRule(max_draft=3), ConfidenceRule(exit_threshold=0.25), AdaptiveRule(max_draft=1)):
        assert StoppingRule.read(dataclasses.asdict(rule), where="here", error=RecipeError) == rule


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"exit": "sometimes"}, "here: exit must be one of fixed, confidence, adaptive, optimal, found 'sometimes'"),
        ({"exit": ["fixed"]}, r"here: exit must be one of .*, found \['fixed'\]"),
        ({"exit": "fixed", "exit_threshold": 0.5}, "here: exit_threshold has no meaning with exit 'fixed'"),
        ({"exit": "confidence", "exit_threshold": 1.5}, "here: exit_threshold is out of range: 1.5"),
        ({"max_draft": 16}, "here: max_draft is out of range: 16"),
        ({"max_drafts": 6}, "here: unknown key 'max_drafts'"),
        ([], "here: expected an object with keys"),
    ],
)
def test_an_invalid_rule_is_refused_with_its_place(data: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        StoppingRule.read(data, where="here", error=RecipeError)
