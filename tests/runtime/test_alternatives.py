"""Alternatives save rounds, never change the text, and are proposed only where there is room for them.

An alternative is a side branch of the token tree, one token long. Sliding window, KV cache and query length
limit the room.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ssruntime import GenerationConfig, Trace
from ssruntime.acceptance import CoupledAcceptance, GreedyAcceptance, RejectionAcceptance, RoundResult
from ssruntime.acceptance.coupled import coupled_ranking, coupled_sample
from ssruntime.acceptance.equality import accept_equal
from ssruntime.artifact import StoppingRule
from ssruntime.backends.ort.tree_mask import TreeMask
from ssruntime.config import CheckpointDefaults, DecodeSettings, complete
from ssruntime.engine import Engine
from ssruntime.graph_io import HIDDEN, MAX_QUERY_LENGTH
from ssruntime.proposal import ALTERNATIVE_GAP, Alternative, Proposal, room_beside
from ssruntime.sampling.filters import filtered
from ssruntime.sampling.noise import CoupledNoise, gumbel
from tests.runtime.conftest import OpenScript
from tests.runtime.scripted import Script, plain_tokens, random_script, step_of, successor_table

VOCAB = 8


def settings_of(**how: object) -> DecodeSettings:
    return complete(GenerationConfig.from_mapping({"temperature": 1.0, "seed": 0, **how}), CheckpointDefaults(), None)


def second_choice_script() -> Script:
    """Returns a script whose draft has the right token as its second choice, one nat below a wrong token.

    The text is 1 2 3 ... 7 1 2 ...
    """
    successors = [1, 2, 3, 4, 5, 6, 7, 1]
    right = successor_table(successors, vocab=VOCAB)
    draft = right.copy()
    for token, successor in enumerate(successors):
        draft[0, token, 1 + successor % 7] = right[0, token, successor] + 1.0
    return Script(verify=right, draft=draft)


# What is proposed


@given(st.integers(0, 2**32), st.integers(2, 200), st.floats(0.1, 5), st.integers(0, 3))
def test_greedy_proposes_the_best_token_and_those_near_it(seed: int, vocab: int, scale: float, max_alternatives: int) -> None:
    logits = (scale * np.random.default_rng(seed).standard_normal((1, vocab))).astype(np.float32)
    proposed = GreedyAcceptance().sample_draft(step_of(logits), 0, max_alternatives)
    order = np.argsort(-logits[0], kind="stable")[: max_alternatives + 1]
    assert proposed == [int(t) for t in order if logits[0, order[0]] - logits[0, t] <= ALTERNATIVE_GAP]


def ranking_by_definition(
    logits: NDArray[np.float32], position: int, how: DecodeSettings, max_alternatives: int
) -> tuple[list[int], float]:
    """Returns the ranking, and the smallest distance between scores or between a score and the cut-off.

    If that distance is within rounding, another ranking is equally right.
    """
    ids, weights = filtered(logits, how)
    scores = np.log(weights.astype(np.float64)) + gumbel(how.seed, position, ids)
    order = np.argsort(-scores, kind="stable")
    near = [i for i in order if scores[order[0]] - scores[i] <= ALTERNATIVE_GAP]
    marks = np.sort(np.append(scores, scores.max() - ALTERNATIVE_GAP))
    return [int(t) for t in ids[near[: max_alternatives + 1]]], float(np.diff(marks).min(initial=math.inf))


@settings(max_examples=300)
# In this example, top-p drops a token that the shortlist proposes.
@example(seed=2, vocab=5, scale=1.5, max_alternatives=0, filters={"temperature": 0.7, "top_p": 0.95})
@given(
    seed=st.integers(0, 2**40),
    vocab=st.integers(2, 60),
    scale=st.floats(0.1, 4),
    max_alternatives=st.integers(0, 3),
    filters=st.sampled_from([{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.02}, {"temperature": 0.7, "top_p": 0.95}, {"temperature": 1.4}]),
)
def test_coupled_ranks_by_score_plus_noise(seed: int, vocab: int, scale: float, max_alternatives: int, filters: dict[str, float]) -> None:
    logits = (scale * np.random.default_rng(seed).standard_normal(vocab)).astype(np.float32)
    how = settings_of(**filters, seed=seed)
    expected, smallest_gap = ranking_by_definition(logits, 7, how, max_alternatives)
    if smallest_gap < 1e-4:
        return
    assert coupled_ranking(logits, 7, how, CoupledNoise(seed), max_alternatives) == expected
    proposed = CoupledAcceptance(how).sample_draft(step_of(logits[None]), 7, max_alternatives)
    assert expected[0] == coupled_sample(logits, 7, how, CoupledNoise(seed))
    if "top_p" not in filters:
        assert proposed == expected
        return
    # The shortlist does not know where the top-p cut lies, so it may propose a token that the filter drops: a
    # proposal may be anything. What the filter keeps is proposed in the right order.
    kept = {int(i) for i in filtered(logits, how)[0]}
    assert proposed[0] == expected[0] or proposed[0] not in kept
    order, _ = ranking_by_definition(logits, 7, how, len(logits))
    assert [t for t in proposed if t in order] == [t for t in order if t in proposed]


def test_alternatives_are_proposed_only_on_request_and_never_with_rejection_sampling() -> None:
    flat = step_of(np.zeros((1, VOCAB), dtype=np.float32))
    assert len(GreedyAcceptance().sample_draft(flat, 0, 0)) == 1
    assert len(GreedyAcceptance().sample_draft(flat, 0, 3)) == 4
    assert len(CoupledAcceptance(settings_of(top_k=5)).sample_draft(flat, 0, 0)) == 1
    assert len(RejectionAcceptance(settings_of()).sample_draft(flat, 0, 3)) == 1


# What is accepted


@given(
    trunk=st.lists(st.integers(0, 3), max_size=4),
    branches=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=5),
    target=st.integers(0, 2**32),
)
def test_emitted_tokens_are_the_targets_samples_after_each_prefix(trunk: list[int], branches: list[tuple[int, int]], target: int) -> None:
    """The target is a function of the path. Each row of the pass must give the sample after its own path."""
    alternatives = [Alternative(d, t) for d, t in sorted(branches) if d < len(trunk)]

    def sample(path: tuple[int, ...]) -> int:
        return int(np.random.default_rng([target, len(path), *path]).integers(0, 4))

    def target_token(row: int, offset: int) -> int:
        if row <= len(trunk):
            assert offset == row
            return sample(tuple(trunk[:row]))
        depth, token = alternatives[row - len(trunk) - 1]
        assert offset == depth + 1
        return sample((*trunk[:depth], token))

    emitted, alternative = accept_equal(Proposal(trunk, alternatives), target_token)
    assert all(token == sample(tuple(emitted[:index])) for index, token in enumerate(emitted))
    agreed = next((i for i, t in enumerate(trunk) if t != emitted[i]), len(trunk))
    accepted = [i for i, a in enumerate(alternatives) if agreed < len(trunk) and a == (agreed, emitted[agreed])]
    assert alternative == (accepted[0] if accepted else None)
    assert len(emitted) == agreed + 1 + bool(accepted)


def test_an_accepted_alternative_gives_one_token_more() -> None:
    rows = [5, 9, 9, 6]  # samples after the committed token, after two wrong tokens, after the alternative
    proposal = Proposal([4, 4], [Alternative(0, 5)])
    assert accept_equal(proposal, lambda row, _: rows[row]) == RoundResult([5, 6], 0)
    assert accept_equal(Proposal([4, 4]), lambda row, _: rows[row]) == RoundResult([5], None)


# Decoding with alternatives


def test_alternatives_halve_the_rounds_of_a_draft_whose_second_choice_is_right(open_script: OpenScript) -> None:
    config = GenerationConfig(temperature=0.0, max_new_tokens=21, exit="fixed", max_draft=1, max_alternatives=1, ignore_eos=True)
    with open_script(second_choice_script()) as engine:
        completion = engine.generate([0], config)
        without = engine.generate([0], dataclasses.replace(config, max_alternatives=0))
    assert completion.token_ids == without.token_ids == [1 + i % 7 for i in range(21)]
    assert (without.stats.rounds, without.stats.accepted, without.stats.alternatives) == (20, 0, 0)
    stats = completion.stats
    # Two tokens per round: the alternative and the bonus token after it.
    assert (stats.rounds, stats.proposed, stats.accepted, stats.alternatives, stats.alternatives_accepted) == (10, 10, 10, 10, 10)


@settings(max_examples=100)
@given(
    name=st.sampled_from(["agreeing", "unsure"]),
    prompt=st.lists(st.integers(0, 7), min_size=1, max_size=40),
    max_alternatives=st.integers(0, 3),
    max_draft=st.integers(1, 15),
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
)
def test_any_number_of_alternatives_gives_the_same_text(
    open_script: OpenScript, name: str, prompt: list[int], max_alternatives: int, max_draft: int, seed: int, temperature: float
) -> None:
    script = SCRIPTS[name]
    if name not in ENGINES:
        ENGINES[name] = open_script(script)
    engine = ENGINES[name]
    config = GenerationConfig(
        max_alternatives=max_alternatives,
        max_draft=max_draft,
        exit="fixed",
        seed=seed,
        temperature=temperature,
        max_new_tokens=50,
        ignore_eos=True,
    )
    trace = Trace()
    completion = engine.generate(prompt, config, trace=trace)
    assert (completion.token_ids, completion.finish_reason) == plain_tokens(script, prompt, engine.settings(config), 64)
    for step in trace.rounds:
        query_length = 1 + len(step.proposals) + len(step.alternatives)
        assert query_length <= MAX_QUERY_LENGTH
        assert step.start + query_length <= 64
        assert list(step.alternatives) == sorted(step.alternatives, key=lambda a: a.depth)


SCRIPTS = {"agreeing": random_script(11, scale=1.0, history=True), "unsure": random_script(12, agreement=0.4, scale=0.7, history=True)}
ENGINES: dict[str, Engine] = {}


def test_passes_with_alternatives_end_within_the_first_window(open_script: OpenScript) -> None:
    config = GenerationConfig(temperature=0.0, max_new_tokens=40, exit="fixed", max_draft=2, ignore_eos=True)
    trace = Trace()
    with open_script(second_choice_script(), window=20) as engine:
        tokens = engine.generate([0, 1], config, trace=trace).token_ids
    assert tokens == [2 + i if i < 6 else 1 + (i - 6) % 7 for i in range(40)]
    ends = [r.start + 1 + len(r.proposals) + len(r.alternatives) for r in trace.rounds if r.alternatives]
    assert ends
    assert max(ends) <= 20
    assert any(not r.alternatives and r.proposals for r in trace.rounds)


def test_the_tuned_number_of_alternatives_is_used_unless_the_request_sets_one(open_script: OpenScript) -> None:
    with open_script(second_choice_script(), tuned=StoppingRule(max_alternatives=0)) as engine:
        assert engine.settings().max_alternatives == 0
        assert engine.settings(GenerationConfig(max_alternatives=3)).max_alternatives == 3
        assert engine.generate([1], GenerationConfig(temperature=0.0, max_new_tokens=10)).stats.alternatives == 0


# Where there is room


@pytest.mark.parametrize(
    ("num_tokens", "start", "end", "room"),
    [(1, 0, 64, 14), (15, 0, 64, 0), (3, 50, 64, 10), (3, 60, 64, 0), (0, 64, 64, 0), (3, 99, 20, 0)],
)
def test_room_is_limited_by_query_length_and_end_position(num_tokens: int, start: int, end: int, room: int) -> None:
    assert room_beside(num_tokens, start, end) == room


def test_the_tree_mask_hides_from_an_alternative_what_is_not_on_its_path() -> None:
    mask = TreeMask(6)
    alternatives = [Alternative(0, 7), Alternative(1, 8), Alternative(1, 9)]
    mask.hide(3, alternatives)
    hidden = {(int(r), int(c)) for r, c in np.argwhere(mask.values[0, 0] == np.float32(HIDDEN))}
    # The alternatives are rows 3, 4 and 5. All attend to column 0, those of depth 1 also to column 1.
    assert hidden == {(3, 1), (3, 2), (4, 2), (4, 3), (5, 2), (5, 3), (5, 4)}
    mask.show(3, alternatives)
    assert not mask.values.any()
