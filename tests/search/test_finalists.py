"""Each finalist gets as many sampled and greedy runs as time allows, and at least three."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ssruntime.artifact import LowBitSet, SkipSet
from ssruntime.stopping import ConfidenceRule
from sstool.prompts import PromptRecord
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.finals import head_to_head
from sstool.search.finals.finalists import choose_finalists, time_finalists
from sstool.search.log.records import COMPLETED, EARLIER, STOPPED, Finalist, Trial
from sstool.search.speed_model.costs import CostModel
from tests.search.conftest import CODE, SETTINGS
from tests.search_report import searches


def timed(builder: DraftBuilder, runs_that_fit: int, **changes: Any) -> tuple[list[Finalist], list[tuple[int, int]]]:
    """Returns a finalist timed on three prompts, and the progress reports of its runs."""
    prompts = [PromptRecord(id=str(n), prompt=prompt, index=n) for n, prompt in enumerate(CODE)]
    skip = SkipSet(attention=(2, 5), mlp=(3, 4, 9))
    trial = Trial(index=7, source="ax", status="completed", skip=skip, stopping=ConfidenceRule(exit_threshold=0.5, max_draft=4))
    costs = CostModel(searches.latency(num_layers=builder.num_layers))
    reports: list[tuple[int, int]] = []

    settings = dataclasses.replace(SETTINGS, **changes)
    found = time_finalists(
        builder,
        [trial],
        prompts,
        settings,
        costs,
        lambda _took: len(reports) < runs_that_fit,
        lambda done, total: reports.append((done, total)),
    )
    return found, reports


def test_few_prompts_are_sampled_more_than_once(builder: DraftBuilder) -> None:
    found, reports = timed(builder, 100)
    # Each prompt is sampled four times, and one of the three is also decoded greedily once.
    assert reports == [(n, 13) for n in range(13)]
    assert [(f.trial, f.prompts) for f in found] == [(7, 13)]
    assert found[0].interval_95 is not None


@pytest.mark.parametrize(("fit", "runs"), [(0, 3), (3, 3), (8, 8)])
def test_timing_stops_when_the_time_is_up_but_not_before_three_runs(builder: DraftBuilder, fit: int, runs: int) -> None:
    found, reports = timed(builder, fit)
    assert len(reports) == found[0].prompts == runs


def test_a_kind_of_text_without_weight_is_not_timed(builder: DraftBuilder) -> None:
    _, greedy = timed(builder, 100, sampled_weight=0.0)
    assert len(greedy) == 3
    _, sampled = timed(builder, 100, greedy_weight=0.0)
    assert len(sampled) == 12


def test_the_largest_seed_can_be_used(builder: DraftBuilder) -> None:
    found, _ = timed(builder, 3, seed=2**63 - 1)
    assert found[0].prompts == 3


def candidate(index: int, source: str, speedup: float, status: str = COMPLETED) -> Trial:
    skip = SkipSet(mlp=(index,))
    return Trial(index=index, source=source, status=status, skip=skip, tokens_per_second=100 * speedup, speedup=speedup)


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        (candidate(0, EARLIER, 1.36), [4, 2, 1, 0]),
        (candidate(0, EARLIER, 1.34), [4, 2, 1]),
        (candidate(0, EARLIER, 1.49, STOPPED), [4, 2, 1]),
        (candidate(0, EARLIER, 1.49), [4, 0, 1]),
        (candidate(0, "recipe", 1.36), [4, 2, 1]),
    ],
)
def test_the_best_warm_start_and_a_similarly_fast_earlier_draft_are_finalists_too(earlier: Trial, expected: list[int]) -> None:
    warm = candidate(1, "leave-one-out", 1.38)
    others = [candidate(2, "ax", 1.48), candidate(3, "ax", 1.2), candidate(4, "ax", 1.5), candidate(5, "ax", 1.6, STOPPED)]
    chosen = choose_finalists([earlier, warm, *others], warm, 2)
    assert [t.index for t in chosen] == expected


def test_there_are_no_finalists_if_no_trial_completed() -> None:
    assert choose_finalists([candidate(0, EARLIER, 1.0, STOPPED)], None, 4) == []


@pytest.mark.parametrize("where", ["open", "run"])
def test_a_finalist_that_fails_is_left_out(
    builder: DraftBuilder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    def trial(index: int, skip: SkipSet) -> Trial:
        return Trial(index=index, source="ax", status=COMPLETED, skip=skip, stopping=ConfidenceRule(exit_threshold=0.5, max_draft=4))

    bad, good = trial(3, SkipSet(mlp=(1, 2))), trial(7, SkipSet(attention=(2, 5), mlp=(3, 4, 9)))
    real_open, real_run = DraftBuilder.open, head_to_head.run_job

    def fail_to_open(self: DraftBuilder, skip: SkipSet, int4: LowBitSet) -> Any:
        if where == "open" and skip == bad.skip:
            raise RuntimeError("no\nroom")
        return real_open(self, skip, int4)

    def fail_to_run(*args: Any) -> Any:
        if where == "run" and args[3] == bad:
            raise RuntimeError("no\nroom")
        return real_run(*args)

    monkeypatch.setattr(DraftBuilder, "open", fail_to_open)
    monkeypatch.setattr(head_to_head, "run_job", fail_to_run)
    prompts = [PromptRecord(id=str(n), prompt=prompt, index=n) for n, prompt in enumerate(CODE)]
    costs = CostModel(searches.latency(num_layers=builder.num_layers))
    found = time_finalists(builder, [bad, good], prompts, SETTINGS, costs, lambda _took: False, lambda *_: None)
    assert [(f.trial, f.prompts) for f in found] == [(7, 3)]
    assert "trial 3 fails as a finalist and is left out: no room" in caplog.text
