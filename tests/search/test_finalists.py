"""Finalists decode as many prompts as there is time for, of both kinds from the beginning on, and never too few to say anything."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ssruntime.artifact import SkipSet
from sstool.prompts import PromptRecord
from sstool.search.candidates import Candidates
from sstool.search.costs import CostModel
from sstool.search.finalists import time_finalists
from sstool.search.records import Finalist, Trial
from tests.report import searches
from tests.search.conftest import CODE, SETTINGS


def timed(candidates: Candidates, runs_that_fit: int, **changes: Any) -> tuple[list[Finalist], list[tuple[int, int]]]:
    """Times one finalist on three prompts; returns it, and what was said of the runs."""
    prompts = [PromptRecord(id=str(n), prompt=prompt, index=n) for n, prompt in enumerate(CODE)]
    skip = SkipSet(attention=(2, 5), mlp=(3, 4, 9))
    trial = Trial(index=7, source="ax", status="completed", skip=skip, exit="confidence", exit_threshold=0.5, max_draft=4)
    costs = CostModel(searches.latency(num_layers=candidates.num_layers))
    said: list[tuple[int, int]] = []
    spent: list[float] = []

    def affords(took: float) -> bool:
        spent.append(took)
        return len(said) < runs_that_fit

    settings = dataclasses.replace(SETTINGS, **changes)
    found = time_finalists(candidates, [trial], prompts, settings, costs, affords, lambda done, total: said.append((done, total)))
    assert all(seconds > 0 for seconds in spent)
    return found, said


def test_few_prompts_are_sampled_more_than_once(candidates: Candidates) -> None:
    found, said = timed(candidates, 100)
    # Each prompt four times sampled, and one of the three greedily too, once.
    assert said == [(n, 13) for n in range(13)]
    assert [(f.trial, f.prompts) for f in found] == [(7, 13)]
    assert found[0].interval_95 is not None


@pytest.mark.parametrize(("fit", "runs"), [(0, 3), (3, 3), (8, 8)])
def test_they_stop_when_the_time_is_up(candidates: Candidates, fit: int, runs: int) -> None:
    found, said = timed(candidates, fit)
    assert len(said) == found[0].prompts == runs
    assert found[0].measured > 0
    assert found[0].plain > 0


def test_one_kind_alone(candidates: Candidates) -> None:
    _, greedy = timed(candidates, 100, sampled_weight=0.0)
    assert len(greedy) == 3
    _, sampled = timed(candidates, 100, greedy_weight=0.0)
    assert len(sampled) == 12
