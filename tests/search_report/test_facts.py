"""The rates, ranks and speed-ups of a report agree with values that were computed by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ssruntime.artifact import SkipSet
from sstool.search.log.read import SearchLog, read_search
from sstool.search.log.records import COMPLETED, FAILED, STOPPED, Counts, Result, Timed, Trial
from sstool.search_report import facts
from sstool.search_report.sections import layer_ranges
from sstool.search_report.timing_plots import wilson_interval
from tests.search_report import searches


def log_of(*records: searches.Record) -> SearchLog:
    trials = tuple(r for r in records if isinstance(r, Trial))
    result = next((r for r in records if isinstance(r, Result)), None)
    return SearchLog(header=searches.header(), sensitivity=None, trials=trials, finalists=(), result=result, latency=None)


def tried(index: int, speedup: float | None, *, source: str = "ax", status: str = COMPLETED) -> Trial:
    return Trial(index=index, source=source, status=status, skip=SkipSet(attention=(1,)), speedup=speedup)


def test_the_best_so_far_is_over_completed_trials_only() -> None:
    trials = [tried(0, None, status=FAILED), tried(1, 0.9), tried(2, 1.5, status=STOPPED), tried(3, 1.2), tried(4, 1.1)]
    assert facts.best_so_far(log_of(*trials)) == [(1, 0.9), (2, 0.9), (3, 1.2), (4, 1.2)]


def test_trials_are_ranked_by_modelled_speed_and_ties_by_index() -> None:
    log = log_of(tried(0, 1.1), tried(1, 1.3), tried(2, 1.3), tried(3, 2.0, status=STOPPED), tried(4, None, status=FAILED))
    assert [t.index for t in facts.ranked(log)] == [1, 2, 0]


def test_the_gain_so_far_is_over_the_best_warm_start() -> None:
    log = log_of(tried(0, 1.0, source="block"), tried(1, 1.2, source="recipe"), tried(2, 1.3, source="random"), tried(3, 1.5))
    warm = facts.best_warm_start(log)
    assert warm is not None
    assert warm.index == 1
    assert facts.gain(log) == pytest.approx(1.5 / 1.2 - 1)
    assert facts.gain(log_of(tried(0, 1.4))) is None


def test_the_winner_of_a_finished_search_is_that_of_its_result(tmp_path: Path) -> None:
    log = read_search(searches.write_search(tmp_path, searches.finished()))
    assert log.result is not None
    winner, warm = facts.winner(log), facts.best_warm_start(log)
    assert winner is not None
    assert warm is not None
    assert (winner.index, warm.index, facts.gain(log)) == (log.result.trial, log.result.best_warm_start, log.result.gain)
    assert facts.shown(log) is winner


def test_without_a_winner_the_fastest_finalist_is_shown(tmp_path: Path) -> None:
    log = read_search(searches.write_search(tmp_path, searches.finished(slow=True)))
    turned = dataclasses.replace(log, finalists=tuple(dataclasses.replace(f, speedup=2 - f.speedup) for f in log.finalists))
    for one in (log, turned):
        shown = facts.shown(one)
        assert facts.winner(one) is None
        assert shown is not None
        assert shown.index == max(one.finalists, key=lambda f: f.speedup).trial
    assert facts.shown(log) is not facts.shown(turned)
    assert facts.shown(dataclasses.replace(log, finalists=(), result=None)) is facts.ranked(log)[0]


def with_counts(counts: dict[str, Counts]) -> Trial:
    return dataclasses.replace(tried(0, 1.0), counts=counts)


def test_kinds_of_text_count_by_their_weights_not_by_their_lengths() -> None:
    trial = with_counts(
        {
            "sampled": Counts(tokens=100, rounds=50, proposed=100, accepted=50),
            "greedy": Counts(tokens=1000, rounds=250, proposed=1000, accepted=750),
        }
    )
    # Per emitted token: sampled 1 proposed, 0.5 accepted, 0.5 rounds; greedy 1, 0.75 and 0.25.
    assert facts.acceptance_rate(trial, {"sampled": 0.75, "greedy": 0.25}) == pytest.approx(0.75 * 0.5 + 0.25 * 0.75)
    assert facts.tokens_per_round(trial, {"sampled": 0.75, "greedy": 0.25}) == pytest.approx(1 / (0.75 * 0.5 + 0.25 * 0.25))
    assert facts.tokens_per_round(trial, {"sampled": 3.0, "greedy": 1.0}) == pytest.approx(1 / (0.75 * 0.5 + 0.25 * 0.25))
    assert facts.tokens_per_round(trial, {}) == pytest.approx(1 / 0.375)
    assert facts.acceptance_rate(trial, {"greedy": 1.0, "sampled": 0.0}) == pytest.approx(0.75)
    assert facts.acceptance_rate(trial, {}) == pytest.approx(0.625)


def test_a_weight_does_not_count_if_only_one_kind_of_text_was_decoded() -> None:
    trial = with_counts({"sampled": Counts(tokens=100, rounds=50, proposed=100, accepted=50)})
    assert facts.tokens_per_round(trial, {"sampled": 0.75, "greedy": 0.0}) == pytest.approx(2.0)


def test_a_trial_that_drafted_nothing_has_no_rate() -> None:
    assert facts.acceptance_rate(with_counts({}), {"sampled": 1.0}) is None
    assert facts.tokens_per_round(with_counts({}), {"sampled": 1.0}) is None
    assert facts.acceptance_rate(with_counts({"sampled": Counts(tokens=9, rounds=9)}), {"sampled": 1.0}) is None


@pytest.mark.parametrize(("cost", "speedup"), [(0.64, 1.21), (0.52, 1.38), (0.38, 1.70), (0.28, 2.06), (0.18, 2.70)])
def test_a_round_s_speedup_with_free_verification_is_the_known_bound(cost: float, speedup: float) -> None:
    found = facts.round_speedup(np.array([0.92]), np.array([cost]), np.ones(40))
    assert found[0] == pytest.approx(speedup, abs=0.006)


def test_a_round_s_speedup_is_that_of_the_best_draft_length() -> None:
    acceptance, cost, ratios = 0.7, 0.4, (1.0, 1.1, 1.3, 2.0)

    def one(k: int) -> float:
        # A round ends after j < k accepted tokens, or with all k.
        emitted = sum((j + 1) * acceptance**j * (1 - acceptance) for j in range(k)) + (k + 1) * acceptance**k
        return emitted / (k * cost + ratios[k])

    found = facts.round_speedup(np.array([acceptance]), np.array([cost]), np.array(ratios))
    assert found[0] == pytest.approx(max(one(k) for k in (1, 2, 3)))


def test_every_point_of_an_iso_line_has_its_speedup() -> None:
    ratios = facts.verify_ratios(searches.latency().rows[0])
    cost = np.linspace(0.05, 0.95, 50)
    for level in (0.8, 1.0, 1.4, 2.0, 5.0):
        rates = facts.iso_line(level, cost, ratios)
        reached = np.isfinite(rates)
        assert facts.round_speedup(rates[reached], cost[reached], ratios) == pytest.approx(np.full(reached.sum(), level), abs=1e-6)
        beyond, ends = cost[~reached], np.ones((~reached).sum())
        below, above = facts.round_speedup(ends, beyond, ratios) < level, facts.round_speedup(0 * ends, beyond, ratios) > level
        assert (below | above).all()
    assert not np.isfinite(facts.iso_line(5.0, cost, ratios)).all()
    assert np.isfinite(facts.iso_line(5.0, cost, ratios)).any()


def test_the_clock_error_is_the_median_over_timed_trials() -> None:
    assert facts.median_clock_error(log_of(tried(0, 1.0))) == 0.0
    timed = [
        dataclasses.replace(tried(n, 1.0), timed=Timed(tokens=47, measured=80 * ratio, modelled=80.0))
        for n, ratio in enumerate((0.9, 1.02, 1.3))
    ]
    assert facts.median_clock_error(log_of(*timed, tried(3, 1.0))) == pytest.approx(0.1)


def test_the_skip_frequency_is_counted_per_sublayer() -> None:
    skips = (SkipSet(attention=(0, 2), mlp=(1,)), SkipSet(attention=(2,)))
    attention, mlp = facts.skip_frequency([dataclasses.replace(tried(i, 1.0), skip=s) for i, s in enumerate(skips)], 3)
    assert attention.tolist() == [0.5, 0.0, 1.0]
    assert mlp.tolist() == [0.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("layers", "text"),
    [((), "none"), ((3,), "3"), ((3, 4), "3, 4"), ((3, 4, 5), "3\u20135"), ((0, 2, 3, 4, 7, 8), "0, 2\u20134, 7, 8")],
)
def test_consecutive_layers_are_written_as_a_range(layers: Sequence[int], text: str) -> None:
    assert layer_ranges(layers) == text


def test_a_rate_s_interval_contains_the_rate_and_stays_within_0_and_1() -> None:
    for hits, trials in ((0, 1), (1, 1), (0, 50), (50, 50), (25, 50)):
        low, high = wilson_interval(hits, trials)
        assert 0 <= low <= hits / trials <= high <= 1
    # Wilson's known interval for 50 of 100.
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
