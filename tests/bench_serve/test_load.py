"""Arrivals are a Poisson process that the seed fixes; loops send every request once, within their limits."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from sstool.bench_serve.load import arrival_times, closed_loop, open_loop


def test_arrivals_are_fixed_by_the_seed() -> None:
    assert arrival_times(2.0, 50, 7) == arrival_times(2.0, 50, 7)
    assert arrival_times(2.0, 50, 7) != arrival_times(2.0, 50, 8)
    assert arrival_times(4.0, 50, 7) == pytest.approx([t / 2 for t in arrival_times(2.0, 50, 7)])
    assert arrival_times(2.0, 1, 7) == [0.0]


def test_arrivals_have_exponential_gaps() -> None:
    times = arrival_times(5.0, 20_001, 0)
    gaps = np.diff(times)
    assert times[0] == 0.0
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(1 / 5, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 5, rel=0.05)
    assert np.mean(gaps > 1 / 5) == pytest.approx(np.exp(-1), abs=0.02)


class Traffic:
    """Requests that end when all that can be in flight are in flight."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, float | None]] = []
        self.num_open = self.max_open = 0

    async def send(self, index: int, due: float | None) -> None:
        """Ends after a few turns of the event loop."""
        self.sent.append((index, due))
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        for _ in range(5):
            await asyncio.sleep(0)
        self.num_open -= 1


@pytest.mark.parametrize(("num_requests", "concurrency"), [(7, 3), (3, 1), (2, 10), (1, 1)])
def test_a_closed_loop_keeps_its_number_in_flight(num_requests: int, concurrency: int) -> None:
    traffic = Traffic()
    asyncio.run(closed_loop(traffic.send, num_requests, concurrency))
    assert traffic.sent == [(index, None) for index in range(num_requests)]
    assert traffic.max_open == min(num_requests, concurrency)
    assert traffic.num_open == 0


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        """Returns the time."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Moves the time."""
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def test_an_open_loop_sends_at_the_arrivals_whether_or_not_others_have_ended() -> None:
    time, traffic = FakeTime(), Traffic()
    asyncio.run(open_loop(traffic.send, [0.0, 0.5, 0.5, 2.0], None, clock=time.clock, sleep=time.sleep))
    assert traffic.sent == [(0, 100.0), (1, 100.5), (2, 100.5), (3, 102.0)]
    assert time.slept == [0.5, 1.5]
    assert traffic.max_open > 1


def test_an_open_loop_may_have_a_limit_and_keeps_the_order() -> None:
    time, traffic = FakeTime(), Traffic()
    asyncio.run(open_loop(traffic.send, [0.0] * 6, 2, clock=time.clock, sleep=time.sleep))
    assert traffic.sent == [(index, 100.0) for index in range(6)]
    assert traffic.max_open == 2


@pytest.mark.parametrize("is_open", [False, True])
def test_an_error_cancels_the_others_and_is_raised_as_it_is(is_open: bool) -> None:
    cancelled = []

    async def send(index: int, _due: float | None) -> None:
        if index == 1:
            raise LookupError("no use")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(index)
            raise

    with pytest.raises(LookupError, match="no use"):
        asyncio.run(open_loop(send, [0.0, 0.0, 0.0], None) if is_open else closed_loop(send, 3, 3))
    assert set(cancelled) <= {0, 2}
    assert 0 in cancelled
