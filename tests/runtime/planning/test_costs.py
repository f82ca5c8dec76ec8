"""The costs of passes: between and beyond what was measured, corrected online, kept on disk."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ssruntime import GenerationConfig, load
from ssruntime.backends.base import Backend, Slot
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.pass_costs import measure, stored
from ssruntime.pass_costs.measure import MeasuredCosts, measure_costs
from ssruntime.planning.acceptance import UNKNOWN
from ssruntime.planning.batch_costs import BatchCosts, shared_by
from ssruntime.planning.costs import PassCosts, between, nominal_costs
from ssruntime.planning.live import LiveCosts
from ssruntime.planning.planner import Planner
from tests.runtime.scripted import random_script, write_artifact

SCRIPT = random_script(3, agreement=0.5, scale=1.0, history=True)
NEAR, FAR = tuple(1.0 + 0.1 * n for n in range(16)), tuple(2.0 + 0.1 * n for n in range(16))
TABLE = PassCosts(contexts=(100, 1100), verify=(NEAR, FAR), drafted=(NEAR, FAR), draft=(0.3, 0.5))


def test_costs_lie_on_a_line_between_contexts_and_beyond_them() -> None:
    assert TABLE.at(0) == TABLE.at(100)
    assert TABLE.at(600).verify[0] == pytest.approx(1.5)
    assert TABLE.at(600).draft == pytest.approx(0.4)
    assert TABLE.at(2100).verify[3] == pytest.approx(3.3)


def test_a_pass_that_was_interrupted_does_not_make_longer_ones_dear() -> None:
    assert between([1, 2, 4], [9.0, 1.2, 1.4])[:4] == pytest.approx((1.2, 1.2, 1.3, 1.4))
    assert len(between([1], [1.0])) == MAX_QUERY_LENGTH


def test_rounds_correct_the_costs() -> None:
    costs = LiveCosts(TABLE, learns=True)
    before = costs.at(128)
    for _ in range(400):
        costs.record(4, 3, 128, 2 * before.seconds(4, 3))
        costs.record(1, 0, 128, before.seconds(1, 0))
    after = costs.at(128)
    assert costs.version > 0
    assert after.seconds(4, 3) == pytest.approx(2 * before.seconds(4, 3), rel=0.1)
    assert after.verify[0] == pytest.approx(before.verify[0], rel=0.1)
    assert list(after.verify) == sorted(after.verify)


def test_load_that_one_kind_of_round_shows_is_that_of_both() -> None:
    costs = LiveCosts(TABLE, learns=True)
    before = costs.at(128)
    for factor in (1.6, 1.0):  # a burst of load, and its end
        for _ in range(96):
            costs.record(4, 3, 128, factor * before.seconds(4, 3))
        after = costs.at(128)
        assert after.verify[0] == pytest.approx(factor * before.verify[0], rel=0.05)
        assert after.seconds(4, 3) == pytest.approx(factor * before.seconds(4, 3), rel=0.05)


def test_what_only_drafting_costs_more_shows_when_the_kind_of_round_changes() -> None:
    costs = LiveCosts(TABLE, learns=True)
    before = costs.at(128)
    for turn in range(2000):
        drafts = turn % 100 != 0
        costs.record(*((4, 3) if drafts else (1, 0)), 128, before.seconds(4, 3) * 1.3 if drafts else before.seconds(1, 0))
    after = costs.at(128)
    assert after.seconds(4, 3) / after.seconds(1, 0) == pytest.approx(1.3 * before.seconds(4, 3) / before.seconds(1, 0), rel=0.06)


def test_an_interruption_counts_little() -> None:
    costs = LiveCosts(TABLE, learns=True)
    before = costs.at(128)
    for turn in range(128):
        costs.record(4, 3, 128, (1000.0 if turn == 64 else 1.0) * before.seconds(4, 3))
    assert costs.at(128).seconds(4, 3) == pytest.approx(before.seconds(4, 3), rel=0.05)


def test_deterministic_costs_stay() -> None:
    costs = LiveCosts(nominal_costs(0.3), learns=False)
    for _ in range(200):
        costs.record(2, 1, 10, 100.0)
    assert (costs.version, costs.at(10)) == (0, nominal_costs(0.3).at(10))


@pytest.mark.parametrize("max_context", [1, 2, 17, 20, 64, 2048])
def test_they_are_measured_on_any_context(tmp_path: Path, max_context: int) -> None:
    with load(write_artifact(tmp_path / "artifact", SCRIPT, max_context=max_context), threads=1) as engine:
        slot = engine.backend.acquire(None)
        found = measure_costs(engine.backend, [slot], has_draft=True).costs
        without = measure_costs(engine.backend, [slot], has_draft=False).costs
        engine.backend.release(slot)
    assert found.contexts[-1] <= max_context
    assert all(min(row) > 0 and list(row) == sorted(row) for row in (*found.verify, *found.drafted))
    assert min(found.draft) > 0
    assert set(without.draft) == {0.0}


def quiet(found: MeasuredCosts) -> MeasuredCosts:
    """Returns what was measured as if the machine had done nothing else, which the tests' may."""
    return found._replace(is_steady=True)


def test_costs_of_a_busy_machine_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path / "cache"))
    real = stored.measure_costs
    monkeypatch.setattr(stored, "measure_costs", lambda *what, **how: real(*what, **how)._replace(is_steady=False))
    with load(write_artifact(tmp_path / "artifact", SCRIPT), threads=1, max_sequences=1) as engine:
        engine.warm_up()
    assert not list((tmp_path / "cache").glob("costs/*"))


def test_whether_the_machine_was_busy_shows_in_the_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.cycle([1.0])
    real = measure._timed
    monkeypatch.setattr(measure, "_timed", lambda *how: real(*how) and next(seconds))
    with load(write_artifact(tmp_path / "artifact", SCRIPT), threads=1, max_sequences=1) as engine:
        slot = engine.backend.acquire(None)
        assert measure_costs(engine.backend, [slot], has_draft=True).is_steady
        assert not measure_costs(engine.backend, [slot], has_draft=True, threads=10**9).is_steady  # so many were never busy
        seconds = itertools.cycle([1.0, 1.0, 2.5, 2.5, 2.5])
        assert not measure_costs(engine.backend, [slot], has_draft=True).is_steady
        engine.backend.release(slot)


def test_they_are_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path / "cache"))
    folder, measured = write_artifact(tmp_path / "artifact", SCRIPT), []
    real = stored.measure_costs
    monkeypatch.setattr(stored, "measure_costs", lambda *what, **how: measured.append(1) or quiet(real(*what, **how)))

    def run(mode: str = "auto") -> None:
        with load(folder, threads=1, max_sequences=1) as engine:
            engine.generate([1, 2, 3], GenerationConfig(mode=mode, max_new_tokens=9, ignore_eos=True))

    run("plain")
    assert not measured
    with load(folder, threads=1, max_sequences=1) as engine:
        engine.warm_up()
    assert measured.pop() == 1
    run()
    run()
    assert not measured
    (file,) = (tmp_path / "cache/costs").glob("*.json")
    whole = json.loads(file.read_text())
    wrong = [-1.0, 0.0, 5e-324, float("inf"), float("nan")]
    rows = [[[1e-3] * 15 + [seconds]] * len(whole["contexts"]) for seconds in wrong]
    damaged = [json.dumps({**whole, name: row}) for row in rows for name in ("verify", "drafted")]
    for damage in ("", "[]", "{}", json.dumps({**whole, "draft": []}), '{"contexts": 1}', *damaged):
        file.write_text(damage)
        measured.clear()
        run()
        assert measured == [1]
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("a file where the folder should be")
    run()


def test_costs_of_shared_passes_are_measured_when_an_engine_warms_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(tmp_path / "cache"))
    folder, measured = write_artifact(tmp_path / "artifact", SCRIPT), list[int]()
    real = stored.measure_costs

    def spied(backend: Backend, slots: Sequence[Slot], **how: Any) -> MeasuredCosts:
        measured.append(len(slots))
        return quiet(real(backend, slots, **how))

    monkeypatch.setattr(stored, "measure_costs", spied)
    with load(folder, threads=1, max_sequences=6) as engine:
        slot = engine.backend.acquire(None)  # as a request has it
        engine.warm_up()
        assert measured == [1, 2, 4]
        engine.backend.release(slot)
        engine.warm_up()
        assert measured == [1, 2, 4, 6]
    with load(folder, threads=1, max_sequences=6) as engine:
        engine.generate([1, 2, 3], GenerationConfig(mode="auto", max_new_tokens=2, ignore_eos=True))
        costs = engine._planners.shared(engine.backend.acquire(None)).costs
        assert measured == [1, 2, 4, 6]
        for sequences in (2, 4, 6):
            costs.sequences = sequences
            assert costs.at(64) != LiveCosts(shared_by(costs._alone, costs.sequences), learns=True).at(64)


@pytest.mark.parametrize("max_context", [1, 2, 17, 20, 64, 2048])
def test_costs_of_shared_passes_are_measured_on_any_context(tmp_path: Path, max_context: int) -> None:
    with load(write_artifact(tmp_path / "artifact", SCRIPT, max_context=max_context), threads=1, max_sequences=3) as engine:
        slots = [engine.backend.acquire(None) for _ in range(3)]
        found = measure_costs(engine.backend, slots, has_draft=True).costs
    assert found.contexts[-1] <= max_context
    assert all(min(row) > 0 and list(row) == sorted(row) for row in (*found.verify, *found.drafted))
    assert min(found.draft) > 0


def test_sequences_that_share_passes_plan_for_one_context() -> None:
    costs = BatchCosts(TABLE, learns=False)
    planner = Planner(costs, UNKNOWN, learns=False)
    model = planner.model("coupled")
    costs.sequences, costs.context = 4, 600
    assert planner.plan(model, 10, 1.0, 4) is planner.plan(model, 5000, -1.0, 4)


def test_measured_costs_of_shared_passes_make_plans_anew_and_stay() -> None:
    costs = BatchCosts(TABLE, learns=True)
    costs.sequences = 4
    estimated = costs.version
    costs.use(4, TABLE)
    assert costs.version != estimated
    assert costs.is_measured(3)
    assert not costs.is_measured(2)


def test_a_second_warm_up_keeps_what_requests_have_taught(tmp_path: Path) -> None:
    with load(write_artifact(tmp_path / "artifact", SCRIPT), threads=1, max_sequences=2) as engine:
        engine.warm_up()
        slot = engine.backend.acquire(None)
        known = engine._planners.shared(slot).costs._known[2]
        engine.backend.release(slot)
        engine.warm_up()
        assert engine._planners.shared(slot).costs._known[2] is known
