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
from ssruntime.artifact import BRANCH_MARGIN
from ssruntime.backends.ort.tree_mask import TreeMask
from ssruntime.config import CheckpointDefaults, DecodeSettings, complete
from ssruntime.engine import Engine
from ssruntime.graph_io import HIDDEN, MAX_QUERY_LENGTH
from ssruntime.proposal import Alternative, TokenTree, branch_rows, room_beside
from ssruntime.sampling.filters import ALTERNATIVE_GAP, filtered
from ssruntime.sampling.noise import CoupledNoise, gumbel
from tests.runtime.conftest import OpenScript
from tests.runtime.scripted import Script, plain_tokens, proposal_of, random_script, step_of, successor_table

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
    proposed = GreedyAcceptance(BRANCH_MARGIN).sample_draft(step_of(logits), 0, max_alternatives).tokens
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
    assert coupled_ranking(logits, 7, how, CoupledNoise(seed), max_alternatives).tokens == expected
    proposed = CoupledAcceptance(how).sample_draft(step_of(logits[None]), 7, max_alternatives).tokens
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
    assert len(GreedyAcceptance(BRANCH_MARGIN).sample_draft(flat, 0, 0).tokens) == 1
    assert len(GreedyAcceptance(BRANCH_MARGIN).sample_draft(flat, 0, 3).tokens) == 4
    assert len(CoupledAcceptance(settings_of(top_k=5)).sample_draft(flat, 0, 0).tokens) == 1
    assert len(RejectionAcceptance(settings_of()).sample_draft(flat, 0, 3).tokens) == 1


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

    def target_token(row: int) -> int:
        assert row <= len(trunk)
        return sample(tuple(trunk[:row]))

    def sure_token(row: int, offset: int) -> int:
        depth, token = alternatives[row - len(trunk) - 1]
        assert offset == depth + 1
        return sample((*trunk[:depth], token))

    emitted, alternative, _ = accept_equal(proposal_of(trunk, alternatives), target_token, sure_token)
    assert all(token == sample(tuple(emitted[:index])) for index, token in enumerate(emitted))
    agreed = next((i for i, t in enumerate(trunk) if t != emitted[i]), len(trunk))
    accepted = [i for i, a in enumerate(alternatives) if agreed < len(trunk) and a == (agreed, emitted[agreed])]
    assert alternative == (accepted[0] if accepted else None)
    assert len(emitted) == agreed + 1 + bool(accepted)


def test_an_accepted_alternative_gives_one_token_more() -> None:
    rows = [5, 9, 9, 6]  # samples after the committed token, after two wrong tokens, after the alternative
    proposal = proposal_of([4, 4], [Alternative(0, 5)])

    target_token = rows.__getitem__
    assert accept_equal(proposal, target_token, lambda row, _offset: rows[row]) == RoundResult([5, 6], 0)
    assert accept_equal(proposal, target_token, lambda _row, _offset: None) == RoundResult([5], 0, is_withheld=True)
    assert accept_equal(proposal_of([4, 4]), target_token, lambda row, _offset: rows[row]) == RoundResult([5], None)


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
        query_length = step.tree.num_rows
        assert query_length <= MAX_QUERY_LENGTH
        assert step.start + query_length <= 64
        assert list(step.tree.branches) == sorted(step.tree.branches, key=lambda a: a.depth)


SCRIPTS = {"agreeing": random_script(11, scale=1.0, history=True), "unsure": random_script(12, agreement=0.4, scale=0.7, history=True)}
ENGINES: dict[str, Engine] = {}


def test_passes_with_alternatives_end_within_the_first_window(open_script: OpenScript) -> None:
    config = GenerationConfig(temperature=0.0, max_new_tokens=40, exit="fixed", max_draft=2, ignore_eos=True)
    trace = Trace()
    with open_script(second_choice_script(), window=20) as engine:
        tokens = engine.generate([0, 1], config, trace=trace).token_ids
    assert tokens == [2 + i if i < 6 else 1 + (i - 6) % 7 for i in range(40)]
    ends = [r.start + r.tree.num_rows for r in trace.rounds if r.tree.branches]
    assert ends
    assert max(ends) <= 20
    assert any(not r.tree.branches and r.proposed for r in trace.rounds)


def test_the_tuned_number_of_alternatives_is_used_unless_the_request_sets_one(open_script: OpenScript) -> None:
    with open_script(second_choice_script(), max_alternatives=0) as engine:
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


def test_the_tree_mask_hides_from_a_branch_what_is_not_on_its_path() -> None:
    mask = TreeMask(6)
    tree = TokenTree([1, 2, 3], [Alternative(0, 7), Alternative(1, 8), Alternative(1, 9)])
    mask.hide(branch_rows(tree))
    hidden = {(int(r), int(c)) for r, c in np.argwhere(mask.values[0, 0] == np.float32(HIDDEN))}
    # The branches are rows 3, 4 and 5. All attend to column 0, those of depth 1 also to column 1.
    assert hidden == {(3, 1), (3, 2), (4, 2), (4, 3), (5, 2), (5, 3), (5, 4)}
    mask.show_all()
    assert not mask.values.any()


# When the token after an accepted alternative may be trusted


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**40),
    vocab=st.integers(3, 80),
    scale=st.floats(0.5, 8),
    filters=st.sampled_from(
        [
            {},
            {"top_p": 0.9},
            {"top_p": 0.95, "min_p": 0.01},
            {"top_p": 0.9, "top_k": 40},
            {"temperature": 1.3, "top_p": 0.8},
            {"top_k": 5},
            {"top_k": 1},
            {"min_p": 0.05},
            {"temperature": 0.7, "top_p": 0.95},
            {"temperature": 0.0},
        ]
    ),
)
def test_a_token_that_is_sure_survives_any_error_within_the_bound(seed: int, vocab: int, scale: float, filters: dict[str, float]) -> None:
    random = np.random.default_rng(seed)
    logits = (scale * random.standard_normal((2, vocab))).astype(np.float32)
    how = settings_of(**filters, seed=seed)
    acceptance = GreedyAcceptance(BRANCH_MARGIN) if how.is_greedy else CoupledAcceptance(how)
    wrong = int(acceptance.sample(step_of(logits[:1]), 7) + 1) % vocab
    right = acceptance.sample(step_of(logits[:1]), 7)
    proposal = proposal_of([wrong], [Alternative(0, right)])
    rows = np.stack([logits[0], logits[0], logits[1]])
    found = acceptance.accept(step_of(rows), proposal, 7)
    assert found.alternative == 0
    bound = BRANCH_MARGIN * np.abs(np.sort(logits[1])[[-1, max(0, vocab - 64)]]).max()
    if found.is_withheld:
        return
    for _ in range(5):
        errors = (random.choice([-1.0, 1.0], vocab) * 0.99 * bound).astype(np.float32)
        assert acceptance.sample(step_of(logits[1:] + errors), 8) == found.emitted[-1]


def test_the_token_after_an_alternative_is_rarely_withheld(open_script: OpenScript) -> None:
    config = GenerationConfig(temperature=0.0, max_new_tokens=41, exit="fixed", max_draft=1, max_alternatives=1, ignore_eos=True)
    with open_script(second_choice_script()) as engine:
        stats = engine.generate([0], config).stats
    assert (stats.alternatives_accepted, stats.withheld) == (20, 0)


@pytest.mark.parametrize(
    ("logits", "filters"),
    [
        ([10, 10 - 1e-4, 9], {"top_p": 0.1}),
        ([10, 10 - 1e-4, 9, 9], {"top_p": 0.3}),
        ([10, 9.6, 9.6 - 1e-4, 9, 9], {"top_p": 0.4}),
        ([10, 9, 8, 7, 7 - 1e-4], {"top_p": 0.95}),
        ([10, 10 - 1e-4, 9], {"min_p": 1.0}),
        ([10, 10 - 1e-4, 9], {"min_p": 0.9995}),
        ([10, 10 - 1e-4, 9], {"top_k": 1}),
        ([10, 9, 9 - 1e-4], {"top_k": 2}),
        ([20, 20 - 1e-4, 9], {"temperature": 1e-6}),
        ([10, 10 - 1e-4, 9], {}),
    ],
)
def test_near_ties_at_the_cut_of_a_filter_leave_no_wrong_token_sure(logits: list[float], filters: dict[str, float]) -> None:
    row = np.array([*logits, *([-5.0] * 70)], dtype=np.float32)
    bound = 0.99 * BRANCH_MARGIN * np.abs(np.sort(row)[[-1, -64]]).max()
    sure = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        acceptance = CoupledAcceptance(settings_of(**filters, seed=seed))
        right = acceptance.sample(step_of(row[None]), 7)
        wrong = (right + 1) % len(row)
        found = acceptance.accept(step_of(np.stack([row, row, row])), proposal_of([wrong], [Alternative(0, right)]), 7)
        if found.is_withheld:
            continue
        sure += 1
        for _ in range(6):
            errors = (random.choice([-1.0, 1.0], len(row)) * bound).astype(np.float32)
            assert acceptance.sample(step_of((row + errors)[None]), 8) == found.emitted[-1]
    assert sure < 60 or not filters


@pytest.mark.parametrize(
    "filters", [{"top_p": 0.95}, {"top_p": 0.95, "top_k": 150}, {"min_p": 0.05}, {"top_p": 0.9, "temperature": 1.5}, {}]
)
def test_a_wide_choice_is_mostly_sure(filters: dict[str, float]) -> None:
    random = np.random.default_rng(0)
    withheld = 0
    for seed in range(200):
        row = (2 * random.standard_normal(400)).astype(np.float32)
        acceptance = CoupledAcceptance(settings_of(**filters, seed=seed))
        right = acceptance.sample(step_of(row[None]), 7)
        proposal = proposal_of([(right + 1) % len(row)], [Alternative(0, right)])
        found = acceptance.accept(step_of(np.stack([row, row, row])), proposal, 7)
        withheld += found.is_withheld
        assert found.is_withheld or found.emitted[-1] == acceptance.sample(step_of(row[None]), 8)
    assert withheld < 50


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.3])
def test_without_filters_a_clear_choice_is_sure_at_every_temperature(temperature: float) -> None:
    row = np.array([30.0, *np.linspace(10, -35, 60)], dtype=np.float32)
    acceptance = CoupledAcceptance(settings_of(temperature=temperature))
    found = acceptance.accept(step_of(np.stack([row, row, row])), proposal_of([1], [Alternative(0, 0)]), 7)
    assert (found.emitted, found.is_withheld) == ([0, 0], False)
