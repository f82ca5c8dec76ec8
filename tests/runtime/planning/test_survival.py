"""The planned draft length is the best one: compared with an exhaustive search over simpler policies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssruntime.planning.costs import RoundCosts, nominal_costs
from ssruntime.planning.survival import NEVER, best_plan

ROWS = tuple(1.0 + 0.05 * row for row in range(16))


def costs_of(draft: float, rows: tuple[float, ...] = ROWS) -> RoundCosts:
    return RoundCosts(rows, rows, draft)


def test_a_draft_that_is_never_accepted_is_not_made() -> None:
    plan = best_plan(costs_of(0.3), np.full(8, 0.05), 12)
    assert plan.thresholds[0] == NEVER
    assert plan.rate == 1.0


def test_a_draft_that_is_always_accepted_is_as_long_as_it_may_be() -> None:
    plan = best_plan(costs_of(0.1), np.full(8, 0.999), 12)
    assert all(threshold < 0.99 for threshold in plan.thresholds[:12])
    assert plan.rate == pytest.approx(13 / (12 * 0.1 + ROWS[12]), rel=0.02)


@pytest.mark.parametrize("probabilities", [0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("draft", [0.1, 0.25, 0.45])
def test_with_equal_odds_the_best_fixed_length_is_found(probabilities: float, draft: float) -> None:
    """With one probability for all tokens, drafting teaches nothing, so a fixed length is best."""
    rates = [(1 + sum(probabilities**i for i in range(1, k + 1))) / (k * draft + ROWS[k] if k else ROWS[0]) for k in range(13)]
    assert best_plan(costs_of(draft), np.full(8, probabilities), 12).rate == pytest.approx(max(rates), rel=0.02)


def test_it_looks_beyond_a_step_in_the_costs() -> None:
    """The second row costs much and the next ones nothing: drafting one token loses, drafting more wins."""
    rows = (1.0, *([1.6] * 15))
    plan = best_plan(costs_of(0.05, rows), np.full(8, 0.9), 8)
    assert plan.rate > 1.9 / (1.6 + 0.05)
    assert plan.thresholds[0] <= 1.0
    assert best_plan(costs_of(0.05, rows), np.full(8, 0.5), 1).thresholds[0] == NEVER


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0.02, 0.98), min_size=2, max_size=3), st.floats(0.05, 0.6), st.floats(0.01, 0.2))
def test_no_threshold_policy_is_faster(probabilities: list[float], draft: float, row: float) -> None:
    """Policies that stop at a survival are tried exhaustively, their speed computed by enumeration."""
    limit, rows = 3, tuple(1.0 + row * n for n in range(16))
    best = 0.0
    for policy in itertools.product((0.0, 0.3, 0.5, 0.7, 0.9, 1.0, NEVER), repeat=limit):
        tokens, seconds = _expected(policy, probabilities, draft, rows, limit)
        best = max(best, tokens / seconds)
    found = best_plan(costs_of(draft, rows), np.array(probabilities), limit).rate
    # Gains below 5 % are left alone, as costs are not known better.
    assert found >= best * 0.98 or (found == 1.0 and best < 1.08)


def _expected(
    policy: tuple[float, ...], probabilities: list[float], draft: float, rows: tuple[float, ...], limit: int
) -> tuple[float, float]:
    """Returns the expected tokens and seconds of a round that drafts while survivals reach thresholds."""
    states, tokens, seconds = [(1.0, 1.0)], 1.0, 0.0
    for depth in range(limit + 1):
        going = [(chance, survival) for chance, survival in states if depth < limit and survival >= policy[depth]]
        stopped = sum(chance for chance, _ in states) - sum(chance for chance, _ in going)
        seconds += stopped * rows[depth] + sum(chance for chance, _ in going) * draft
        states = [(chance / len(probabilities), survival * one) for chance, survival in going for one in probabilities]
        tokens += sum(chance * survival for chance, survival in states)
    return tokens, seconds


def test_nominal_costs_depend_on_no_machine() -> None:
    assert nominal_costs(0.3).at(5) == nominal_costs(0.3).at(4000)
