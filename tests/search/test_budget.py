"""A search uses as many prompts, and texts as long, as its time and memory allow."""

from __future__ import annotations

import dataclasses
import math

import pytest

from ssruntime.errors import ConfigError
from sstool.prompts import PromptRecord
from sstool.search.budget import Resources, plan_calibration, repeat_plan
from sstool.search.finals.runs import final_reserve
from sstool.search.settings import SearchSettings
from tests.search_report import searches

SETTINGS = SearchSettings()
PLENTY = Resources(step=0.01, budget=600, memory=10**10, position_bytes=100_000)


def prompts(count: int) -> list[PromptRecord]:
    return [PromptRecord(id=str(n), prompt=f"prompt {n}", index=n) for n in range(count)]


def test_a_small_model_is_searched_with_all_prompts(caplog: pytest.LogCaptureFixture) -> None:
    found = plan_calibration(prompts(32), [12] * 32, SETTINGS, PLENTY)
    assert (len(found.search), len(found.final)) == (16, 16)
    assert not {p.id for p in found.search} & {p.id for p in found.final}
    assert not caplog.messages


@pytest.mark.parametrize(
    "changes",
    [{"step": 0.08}, {"budget": 80}, {"memory": 10**8}, {"position_bytes": 3 * 10**7}],
)
def test_prompts_that_cost_too_much_are_left_out_at_even_intervals(changes: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    given = dataclasses.replace(SETTINGS, calibration="ours.jsonl")
    found = plan_calibration(prompts(32), [12] * 32, given, dataclasses.replace(PLENTY, **changes))
    assert 4 <= len(found.search) < 16
    assert found.final
    assert int(found.search[-1].id) > 20
    assert len({p.id for p in found.search}) == len(found.search)
    assert f"calibrating with {len(found.search)} of 16 prompts" in caplog.text
    counts = {"search_prompts": len(found.search), "final_prompts": len(found.final), "sampled_tokens": found.sampled_tokens}
    assert repeat_plan(prompts(32), dataclasses.replace(searches.header(), **counts)) == found


@pytest.mark.parametrize(("step", "is_logged"), [(0.012, False), (0.08, True)])
def test_a_large_reduction_of_the_shipped_prompts_is_logged_as_a_warning(
    step: float, is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    found = plan_calibration(prompts(64), [60] * 64, SETTINGS, dataclasses.replace(PLENTY, step=step))
    assert len(found.search) < 32
    assert ("calibrating with" in caplog.text) is is_logged


def test_a_large_file_of_long_prompts_stays_within_memory() -> None:
    found = plan_calibration(prompts(1000), [500] * 1000, SETTINGS, dataclasses.replace(PLENTY, budget=math.inf))
    positions = sum(500 + found.sampled_tokens + 8 for _ in found.search)
    assert 10 < len(found.search) < 500
    assert positions * PLENTY.position_bytes <= 10**10 / 2
    assert len(found.final) == 62


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [({}, 32), ({"step": 0.0015}, 80), ({"step": 0.0015, "budget": 3600}, 96), ({"budget": math.inf}, 96), ({"step": 0.1}, 32)],
)
def test_texts_are_as_long_as_the_budget_allows(changes: dict[str, float], tokens: int) -> None:
    resources = dataclasses.replace(PLENTY, **changes)
    assert plan_calibration(prompts(64), [12] * 64, SETTINGS, resources).sampled_tokens == tokens
    assert plan_calibration(prompts(64), [12] * 64, dataclasses.replace(SETTINGS, sampled_tokens=48), resources).sampled_tokens == 48


def test_memory_is_used_for_all_prompts_before_longer_texts() -> None:
    scarce = dataclasses.replace(PLENTY, step=0.0001, memory=16 * 2 * 100_000 * 80)
    found = plan_calibration(prompts(32), [12] * 32, SETTINGS, scarce)
    assert len(found.search) == 16
    assert 32 <= found.sampled_tokens < 96


def test_all_prompts_are_used_if_memory_is_unknown_and_the_budget_unlimited() -> None:
    found = plan_calibration(prompts(400), [50] * 400, SETTINGS, dataclasses.replace(PLENTY, budget=math.inf, memory=None))
    assert (len(found.search), len(found.final)) == (343, 57)


def test_a_budget_too_small_for_one_trial_is_refused_with_one_that_suffices() -> None:
    with pytest.raises(ConfigError, match="too small for one trial: at 300 ms a step") as caught:
        plan_calibration(prompts(32), [12] * 32, SETTINGS, dataclasses.replace(PLENTY, step=0.3, budget=60))
    seconds = int(caught.value.hint.split()[-1].rstrip("s"))
    plan_calibration(prompts(32), [12] * 32, SETTINGS, dataclasses.replace(PLENTY, step=0.3, budget=seconds))


def test_a_share_of_the_budget_is_reserved_for_the_finalists() -> None:
    few, most, every = (final_reserve(64, SETTINGS, 0.01, budget) for budget in (1.0, 600.0, math.inf))
    assert 0 < few < most == 0.3 * 600 < every < math.inf
    # Each of 16 prompts is sampled twice, each of 4 four times. Every third is also decoded greedily once.
    for count, runs in ((16, 16 * (2 + 1 / 3)), (4, 4 * (4 + 1 / 3))):
        for budget in (600.0, math.inf):
            assert final_reserve(count, SETTINGS, 0.001, budget) == pytest.approx(every / 10 * runs / (64 * 4 / 3))


def test_thousands_of_trials_do_not_reduce_the_calibration_texts() -> None:
    many = plan_calibration(prompts(64), [12] * 64, dataclasses.replace(SETTINGS, trials=5000), PLENTY)
    assert many == plan_calibration(prompts(64), [12] * 64, SETTINGS, PLENTY)
    assert len(many.search) >= 24
