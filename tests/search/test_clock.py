"""A search's clock gives the time left of the budget and the time of each part."""

from __future__ import annotations

import math

import pytest

from sstool.search.clock import Clock
from tests.search.fake_time import FakeTime


def test_the_time_left_counts_down_from_the_budget_and_below_zero(time: FakeTime) -> None:
    clock = Clock(10)
    assert (clock.elapsed(), clock.left()) == (0, 10)
    time.passes(4)
    assert (clock.elapsed(), clock.left()) == (4, 6)
    time.passes(9)
    assert (clock.elapsed(), clock.left()) == (13, -3)


def test_an_infinite_budget_never_ends(time: FakeTime) -> None:
    clock = Clock(math.inf)
    time.passes(1e9)
    assert clock.left() == math.inf
    assert clock.affords(1e9, 0.01)


def test_a_share_refers_to_the_whole_budget(time: FakeTime) -> None:
    clock = Clock(100)
    time.passes(99)
    assert clock.affords(12, 0.12)
    assert not clock.affords(12.1, 0.12)


def test_the_times_of_a_repeated_part_are_added(time: FakeTime) -> None:
    clock = Clock(100)
    for seconds in (1, 2.5):
        with clock.part("texts"):
            time.passes(seconds)
        time.passes(10)
    with clock.part("latency"):
        time.passes(0.00049)
    assert clock.parts() == {"texts": 3.5, "latency": 0.0, "total": 23.5}


def test_the_time_of_a_part_that_fails_is_counted(time: FakeTime) -> None:
    clock = Clock(100)

    def fail() -> None:
        with clock.part("ax"):
            time.passes(3)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert clock.parts() == {"ax": 3, "total": 3}
