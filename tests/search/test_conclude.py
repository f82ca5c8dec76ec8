"""A search's result names the winner and the gain over the warm starts, or says why there is no winner."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ssruntime.artifact import LowBitSet, SkipSet
from sstool.search.finals.conclude import conclude
from sstool.search.log.records import COMPLETED, FAILED, Finalist, Trial


def trial(index: int, source: str, speed: float | None) -> Trial:
    status = FAILED if speed is None else COMPLETED
    error = "out of order" if speed is None else None
    return Trial(index=index, source=source, status=status, skip=SkipSet(mlp=(index,)), tokens_per_second=speed, speedup=speed, error=error)


def finalist(index: int, speedup: float) -> Finalist:
    rest: dict[str, Any] = {"interval_95": None, "acceptance_rate": None, "tokens_per_round": None, "prompts": 1}
    return Finalist(trial=index, modelled=1.0, measured=speedup, plain=1.0, speedup=speedup, by_kind={}, **rest)


def test_the_finalist_with_the_fastest_measured_speed_wins() -> None:
    trials = [trial(0, "block", 1.2), trial(1, "ax", 1.5), trial(2, "ax", 1.4)]
    result = conclude(trials, [finalist(1, 1.3), finalist(2, 1.35), finalist(0, 1.1)], trials[0], {"total": 1.0})
    assert (result.trial, result.speedup, result.best_warm_start) == (2, 1.35, 0)
    assert result.gain == pytest.approx(0.25)
    assert result.remark == "The search gained 25.0% in modelled speed over its best warm start (block)."


def test_the_remark_says_if_the_search_gained_nothing() -> None:
    trials = [trial(0, "leave-one-out", 1.5), trial(1, "ax", 1.2)]
    result = conclude(trials, [finalist(0, 1.4)], trials[0], {})
    assert result.gain == 0
    assert "gained nothing over its warm starts (best source: leave-one-out): none of 1 suggested candidates was better" in result.remark
    assert "no suggested candidate was tried" in conclude(trials[:1], [finalist(0, 1.4)], trials[0], {}).remark


def test_there_is_no_winner_if_no_finalist_beats_autoregressive_decoding() -> None:
    trials = [trial(0, "block", 1.1), trial(1, "ax", 1.2)]
    result = conclude(trials, [finalist(0, 0.9), finalist(1, 1.0)], trials[0], {})
    assert (result.trial, result.speedup) == (None, None)
    assert result.remark == "No draft beat autoregressive decoding: the fastest of 2 finalists ran at 1.00 times its speed."


@pytest.mark.parametrize(
    ("own", "shared", "winner"), [(1.5, 1.4, 0), (1.42, 1.4, 1), (1.4, 1.5, 1), (1.02, 0.995, 0), (1.0, 0.9, None), (0.99, 1.01, 1)]
)
def test_own_weights_must_be_worth_their_memory(own: float, shared: float, winner: int | None) -> None:
    trials = [dataclasses.replace(trial(0, "ax", own), int4=LowBitSet(head=True)), trial(1, "block", shared)]
    assert conclude(trials, [finalist(0, own), finalist(1, shared)], trials[1], {}).trial == winner


def test_the_remark_gives_the_first_error_if_all_trials_failed() -> None:
    result = conclude([trial(0, "block", None)], [], None, {})
    assert (result.trial, result.gain) == (None, None)
    assert "out of order" in result.remark
