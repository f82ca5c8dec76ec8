"""Near ties are distinguished from defects.

Every case is a scripted model whose logits differ between query lengths by a chosen amount.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from ssruntime import Engine, GenerationConfig
from ssruntime.proposal import TokenTree
from ssruntime.results import Round, Trace
from ssruntime.sampling.noise import gumbel
from sstool.artifact_files.bits_record import NEAR_TIE_TOLERANCE
from sstool.validation.lossless import Comparison, TracedRun, compare, traced
from tests.measure.conftest import Script, successor_table

OpenScript = Callable[[Script], Engine]

GREEDY = GenerationConfig(max_new_tokens=24, mode="speculative", temperature=0.0, seed=3, exit="fixed", max_draft=4)
SAMPLED = dataclasses.replace(GREEDY, temperature=0.8, top_p=0.95)


def tied_script(gap: float, bump: float, *, width: int = 0) -> Script:
    """Returns a script in which `t6` leads `t20` by `gap` after `t5`, and longer passes add `bump` to `t20`.

    Longer passes are those of query length `width`, or of every query length above 1 if `width` is 0. The
    draft proposes `t6`.
    """
    verify, bumps = successor_table(), np.zeros((32, 32), dtype=np.float32)
    verify[5, 20] = verify[5, 6] - np.float32(gap)
    bumps[5, 20] = bump
    return Script(verify=verify, draft=successor_table(), bump=bumps, bump_width=width)


def run_both(engine: Engine, config: GenerationConfig, prompt: str = "t1 t2") -> Comparison:
    plain = engine.generate(prompt, dataclasses.replace(config, mode="plain"))
    _, run = traced(engine, prompt, config)
    return compare(engine, config, plain=plain.token_ids, run=run, tie_tolerance=NEAR_TIE_TOLERANCE)


def test_equal_text_is_identical(open_script: OpenScript) -> None:
    result = run_both(open_script(Script(verify=successor_table(), draft=successor_table())), GREEDY)
    assert (result.verdict, result.tokens, result.differences) == ("yes", 24, ())


def test_a_draft_that_is_always_wrong_does_not_change_the_text(open_script: OpenScript) -> None:
    wrong = np.roll(successor_table(), 3, axis=1)
    for config in (GREEDY, SAMPLED):
        assert run_both(open_script(Script(verify=successor_table(), draft=wrong)), config).verdict == "yes"


def test_a_flip_within_rounding_is_a_near_tie_and_the_comparison_continues(open_script: OpenScript) -> None:
    result = run_both(open_script(tied_script(2e-5, 4e-5)), GREEDY)
    assert result.verdict == "near_tie"
    assert result.tokens == 24
    found = result.differences[0]
    assert (found.index, found.run_token, found.plain_token, found.verdict) == (3, 20, 6, "near_tie")
    assert found.gap == pytest.approx(2e-5, abs=3e-6)


def test_every_near_tie_of_a_text_is_counted(open_script: OpenScript) -> None:
    engine = open_script(tied_script(2e-5, 4e-5))
    config = dataclasses.replace(GREEDY, max_new_tokens=70)  # t5 occurs every 32 tokens
    assert run_both(engine, config).num_near_ties == 3


def test_a_flip_across_a_larger_gap_is_a_defect(open_script: OpenScript) -> None:
    result = run_both(open_script(tied_script(1e-3, 2e-3)), GREEDY)
    assert result.verdict == "no"
    assert result.tokens == 4
    assert result.differences[0].gap == pytest.approx(1e-3, rel=0.05)


def test_a_gap_that_is_small_at_one_query_length_only_is_a_defect(open_script: OpenScript) -> None:
    result = run_both(open_script(tied_script(2e-5, 1e-2)), GREEDY)
    assert result.verdict == "no"


def test_a_replay_uses_the_query_lengths_of_rejected_proposals(open_script: OpenScript) -> None:
    """The flip occurs only at query length 5, and every proposal of the draft after it is rejected."""
    script = tied_script(2e-5, 4e-5, width=5)
    draft = script.draft
    assert draft is not None
    draft[6] = 0.0
    draft[6, 30] = 20.0
    result = run_both(open_script(script), GREEDY, prompt="t4")
    assert result.verdict == "near_tie"
    assert result.differences[0].index == 1


@pytest.mark.parametrize(("gap", "bump", "verdict"), [(2e-5, 4e-5, "yes"), (1e-3, 2e-3, "yes"), (1e-2, 2e-2, "no")])
def test_a_replay_finds_the_row_of_an_alternative(open_script: OpenScript, gap: float, bump: float, verdict: str) -> None:
    """The tie after `t5` is decided in the row of an alternative, a side branch of one token.

    `t5` is an alternative because it is the draft's second choice after `t4`.
    """
    # Only the pass over the tree has four rows: the next one runs two tokens and drafts none.
    script = tied_script(gap, bump, width=4)
    draft = script.draft
    assert draft is not None
    draft[4] = 0.0
    draft[4, 30], draft[4, 5] = 20.0, 19.0
    engine = open_script(script)
    config = dataclasses.replace(GREEDY, exit="fixed", max_draft=2, max_new_tokens=4)
    _, run = traced(engine, "t3", config)
    assert next(r.tree.branches[r.alternative] for r in run.trace.rounds if r.alternative is not None).token == 5
    result = run_both(engine, config, prompt="t3")
    assert result.verdict == verdict
    if verdict == "yes":  # the choice was too close for the alternative's row, and was left to the next round
        return
    assert "scores differ" in result.differences[0].reason
    assert (result.differences[0].plain_token, result.differences[0].run_token) == (6, 20)
    assert result.differences[0].gap == pytest.approx(gap, rel=0.5)


def test_a_difference_in_the_first_token_is_replayed_with_the_prefill(open_script: OpenScript) -> None:
    engine = open_script(tied_script(2e-5, 4e-5))
    _, run = traced(engine, "t4 t5", GREEDY)  # two tokens: a query length with the bump
    assert run.token_ids[0] == 20
    pretended = compare(engine, GREEDY, plain=[6, *run.token_ids[1:]], run=run, tie_tolerance=NEAR_TIE_TOLERANCE)
    assert pretended.verdict == "no"  # mode `plain` prefills with the same query length, so its token cannot differ
    assert "one position at a time" in pretended.differences[0].reason


def test_a_token_that_no_replay_reproduces_is_a_defect(open_script: OpenScript) -> None:
    engine = open_script(tied_script(2e-5, 4e-5))
    plain = engine.generate("t1 t2", dataclasses.replace(GREEDY, mode="plain"))
    _, run = traced(engine, "t1 t2", GREEDY)
    forged = TracedRun(token_ids=(*run.token_ids[:2], 9, *run.token_ids[3:]), trace=run.trace)
    result = compare(engine, GREEDY, plain=plain.token_ids, run=forged, tie_tolerance=NEAR_TIE_TOLERANCE)
    assert result.verdict == "no"
    assert "the run's own passes" in result.differences[0].reason


def test_a_trace_without_the_deciding_pass_is_a_defect(open_script: OpenScript) -> None:
    engine = open_script(tied_script(2e-5, 4e-5))
    plain = engine.generate("t1 t2", dataclasses.replace(GREEDY, mode="plain"))
    _, run = traced(engine, "t1 t2", GREEDY)
    for rounds in ([], [Round(1, TokenTree((9, 9, 9, 9, 9)), proposed=4)]):
        broken = TracedRun(token_ids=run.token_ids, trace=Trace(prompt_ids=run.trace.prompt_ids, rounds=rounds))
        result = compare(engine, GREEDY, plain=plain.token_ids, run=broken, tie_tolerance=NEAR_TIE_TOLERANCE)
        assert result.verdict == "no"
        assert "trace" in result.differences[0].reason


@pytest.mark.parametrize("shorter", ["run", "plain"])
def test_texts_of_different_lengths_are_a_defect(open_script: OpenScript, shorter: str) -> None:
    engine = open_script(Script(verify=successor_table(), draft=successor_table()))
    completion, run = traced(engine, "t1 t2", GREEDY)
    plain = completion.token_ids
    if shorter == "plain":
        plain = plain[:-3]
    else:
        run = TracedRun(token_ids=run.token_ids[:-3], trace=run.trace)
    assert compare(engine, GREEDY, plain=plain, run=run, tie_tolerance=NEAR_TIE_TOLERANCE).verdict == "no"


def sampled_tie(seed: int, gap: float, bump: float) -> Script:
    """Returns a `tied_script` for sampling after `t1 t2`; `gap` is between scores with Gumbel noise."""
    script = tied_script(0.0, bump * SAMPLED.temperature if SAMPLED.temperature else bump)
    noise = gumbel(seed, 5, np.array([6, 20], dtype=np.int64))  # t6 has position 5 in t1 t2 t3 t4 t5 t6
    assert SAMPLED.temperature is not None
    script.verify[5, 20] = script.verify[5, 6] + np.float32(SAMPLED.temperature * (noise[0] - noise[1] - gap))
    return script


@pytest.mark.parametrize(("gap", "bump", "verdict"), [(2e-5, 5e-5, "near_tie"), (1e-3, 2e-3, "no"), (1e-2, 1e-3, "yes")])
def test_sampled_tokens_are_compared_by_scores_that_include_noise(open_script: OpenScript, gap: float, bump: float, verdict: str) -> None:
    config = dataclasses.replace(SAMPLED, top_p=1.0, min_p=0.0, top_k=2)
    seed = next(s for s in range(100) if abs(float(np.diff(gumbel(s, 5, np.array([6, 20], dtype=np.int64)))[0])) < 1.0)
    result = run_both(open_script(sampled_tie(seed, gap, bump)), dataclasses.replace(config, seed=seed))
    assert result.verdict == verdict


def cut_script(distance: float, bump: float) -> tuple[Script, int]:
    """Returns a script in which `t20` is close to the cut of top-p after `t5`, and a seed.

    After `t5`, `t6` has most of the probability. The seed gives `t20` so much more noise that it wins if
    top-p keeps it. Top-p 0.95 keeps `t20` if `t6` has less than 0.95; `t6` has `distance` less. In longer
    passes, `bump` is added to the logit of `t6`, which may be enough to drop `t20`.
    """
    verify, bumps = successor_table(), np.zeros((32, 32), dtype=np.float32)
    before = 0.95 - distance  # the probability of t6 at temperature 1; t20 has the rest
    verify[5] = -60.0
    verify[5, 6] = 0.0
    verify[5, 20] = np.log((1.0 - before) / before)
    bumps[5, 6] = bump
    margin = float(-verify[5, 20]) + 0.5
    seed = next(s for s in range(5000) if float(np.diff(gumbel(s, 5, np.array([6, 20], dtype=np.int64)))[0]) > margin)
    return Script(verify=verify, draft=successor_table(), bump=bumps), seed


@pytest.mark.parametrize(("distance", "bump", "verdict"), [(1e-5, 1e-3, "near_tie"), (5e-4, 5e-2, "no"), (1e-3, 1e-4, "yes")])
def test_a_candidate_at_the_cut_of_a_filter_is_judged_by_its_distance(
    open_script: OpenScript, distance: float, bump: float, verdict: str
) -> None:
    script, seed = cut_script(distance, bump)
    config = dataclasses.replace(SAMPLED, temperature=1.0, top_p=0.95, seed=seed)
    result = run_both(open_script(script), config)
    assert result.verdict == verdict
    if verdict == "near_tie":
        assert "cut" in result.differences[0].reason
