"""A pool lends each item to one user at a time, makes no more items than its limit, and loses none."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest

from ssruntime.backends.pool import Pool, WaitCancelledError
from ssruntime.errors import BackendUnavailableError

LONG = 60.0
"""Seconds after which a wait fails. No wait here takes as long, unless threads deadlock."""


class BrokenMakerError(Exception):
    """An error that makers raise in these tests."""


def counter() -> Callable[[], int]:
    return itertools.count().__next__


def until_waiting(pool: Pool[int], number: int) -> None:
    """Returns once that many threads wait for an item."""
    deadline = time.monotonic() + LONG
    while len(pool._waiting) < number:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_items_are_made_when_first_needed_and_lent_again() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    pool = Pool(make, 3)
    assert made == []
    first = pool.acquire(0)
    pool.release(first)
    assert [pool.acquire(0), pool.acquire(0), pool.acquire(0)] == [0, 1, 2]
    pool.release(2)
    pool.release(0)
    assert {pool.acquire(0), pool.acquire(0)} == {0, 2}
    assert made == [0, 1, 2]


@pytest.mark.parametrize("timeout", [0.0, -1.0, 0.01])
def test_a_wait_for_a_full_pool_times_out_with_a_hint(timeout: float) -> None:
    pool = Pool(counter(), 2)
    held = [pool.acquire(None), pool.acquire(None)]
    with pytest.raises(BackendUnavailableError, match="all 2 sequences") as caught:
        pool.acquire(timeout)
    assert f"{timeout:g} s" in caught.value.message
    assert "max_sequences" in caught.value.hint
    pool.release(held[0])
    assert pool.acquire(0) == held[0]


@pytest.mark.parametrize("timeout", [None, LONG])
def test_a_waiting_user_gets_the_next_free_item(timeout: float | None) -> None:
    pool = Pool(counter(), 1)
    held = pool.acquire(0)
    with ThreadPoolExecutor(1) as users:
        waiting = users.submit(pool.acquire, timeout)
        until_waiting(pool, 1)
        assert not waiting.done()
        pool.release(held)
        assert waiting.result(LONG) == held


def test_each_release_serves_one_waiting_user() -> None:
    pool = Pool(counter(), 2)
    held = [pool.acquire(0), pool.acquire(0)]
    with ThreadPoolExecutor(3) as users:
        waiting = [users.submit(pool.acquire, LONG) for _ in range(3)]
        until_waiting(pool, 3)
        for item in held:
            pool.release(item)
        served = as_completed(waiting, timeout=LONG)
        assert {next(served).result(), next(served).result()} == set(held)
        until_waiting(pool, 1)
        assert sum(f.done() for f in waiting) == 2
        pool.release(held[0])
        assert next(served).result() == held[0]


@pytest.mark.parametrize("error", [BrokenMakerError, KeyboardInterrupt, MemoryError])
def test_a_failing_maker_frees_its_place(error: type[BaseException]) -> None:
    outcomes = iter([error(), error(), 5])

    def make() -> int:
        outcome = next(outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    pool = Pool(make, 1)
    for _ in range(2):
        with pytest.raises(error):
            pool.acquire(0)
    assert pool.acquire(0) == 5


def test_a_failing_maker_wakes_a_thread_that_waits_for_its_place() -> None:
    making, fail = threading.Event(), threading.Event()
    calls = itertools.count()

    def make() -> int:
        call = next(calls)
        if call == 0:
            making.set()
            fail.wait(LONG)
            raise BrokenMakerError
        return call

    pool = Pool(make, 1)
    with ThreadPoolExecutor(2) as users:
        unlucky = users.submit(pool.acquire, None)
        assert making.wait(LONG)
        waiting = users.submit(pool.acquire, LONG)
        until_waiting(pool, 1)
        fail.set()
        assert isinstance(unlucky.exception(LONG), BrokenMakerError)
        assert waiting.result(LONG) == 1


def test_a_free_item_is_lent_while_another_one_is_being_made() -> None:
    making, go_on = threading.Event(), threading.Event()
    calls = itertools.count()

    def make() -> int:
        call = next(calls)
        if call == 1:
            making.set()
            go_on.wait(LONG)
        return call

    pool = Pool(make, 2)
    first = pool.acquire(0)
    with ThreadPoolExecutor(1) as users:
        slow = users.submit(pool.acquire, None)
        assert making.wait(LONG)
        pool.release(first)
        assert pool.acquire(0) == first
        go_on.set()
        assert slow.result(LONG) == 1


CLOSED = BackendUnavailableError("closed", "load again")


def test_waiting_users_are_served_in_order_and_before_later_ones() -> None:
    """A thread that gives an item back and wants one again waits behind those that were there first."""
    pool = Pool(counter(), 1)
    order: list[int] = []

    def use(user: int) -> None:
        item = pool.acquire(LONG)
        order.append(user)
        pool.release(item)

    held = pool.acquire(0)
    with ThreadPoolExecutor(20) as users:
        for user in range(20):
            users.submit(use, user)
            until_waiting(pool, user + 1)
        pool.release(held)
        held = pool.acquire(LONG)
        order.append(20)
        pool.release(held)
    assert order == list(range(21))


def test_closing_refuses_waiting_and_later_users_and_keeps_no_item() -> None:
    class Item:
        """An item that can be referred to weakly."""

    pool = Pool(Item, 2)
    held, free = pool.acquire(0), pool.acquire(0)
    items = [weakref.ref(held), weakref.ref(free)]
    pool.release(free)
    del free
    pool.release(pool.acquire(0))
    lent = pool.acquire(0)
    with ThreadPoolExecutor(2) as users:
        waiting = [users.submit(pool.acquire, timeout) for timeout in (None, LONG)]
        until_waiting(pool, 2)  # type: ignore[arg-type]
        pool.close(CLOSED)
        assert [w.exception(LONG) for w in waiting] == [CLOSED, CLOSED]
    with pytest.raises(BackendUnavailableError, match="closed"):
        pool.acquire(0)
    pool.release(held)
    pool.release(lent)
    del held, lent
    assert [item() for item in items] == [None, None]


def test_an_item_that_is_handed_over_at_an_interrupt_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(counter(), 1)
    held = pool.acquire(0)

    def interrupted(_event: threading.Event, _timeout: float | None = None) -> bool:
        pool.release(held)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.acquire(None)
    assert pool.acquire(0) == held
    assert not pool._waiting


def test_a_thread_that_waits_for_itself_is_warned(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("ssruntime.backends.pool.SUSPICIOUS_WAIT", 0.01)
    pool = Pool(counter(), 2)
    pool.acquire(0)
    other = pool.acquire(0)
    with pytest.raises(BackendUnavailableError):
        pool.acquire(0.05)
    assert "raise max_sequences" in caplog.text
    caplog.clear()
    pool.release(other)
    with ThreadPoolExecutor(1) as users:
        users.submit(pool.acquire, 0).result(LONG)
    with pytest.raises(BackendUnavailableError):
        pool.acquire(0.05)
    assert not caplog.text


def test_many_threads_share_few_items_and_none_is_held_twice() -> None:
    limit = 3
    out: set[int] = set()
    most: list[int] = []
    guard = threading.Lock()
    made: list[int] = []
    tries = counter()

    def make() -> int:
        if next_try() % 3 == 0:
            raise BrokenMakerError
        with guard:
            made.append(len(made))
            return made[-1]

    def next_try() -> int:
        with guard:
            return tries()

    pool = Pool(make, limit)

    def use(_: int) -> bool:
        try:
            item = pool.acquire(LONG)
        except BrokenMakerError:
            return False
        with guard:
            assert item not in out
            out.add(item)
            most.append(len(out))
        with guard:
            out.remove(item)
        pool.release(item)
        return True

    with ThreadPoolExecutor(16) as users:
        served = list(users.map(use, range(2000)))
    assert max(most) <= limit
    assert len(made) <= limit
    assert served.count(False) == tries() - len(made)
    assert {pool.acquire(0) for _ in made} == set(made)


def test_a_cancelled_wait_ends_and_leaves_its_turn_to_others() -> None:
    pool = Pool(counter(), 1)
    held = pool.acquire(0)
    cancel = threading.Event()
    with ThreadPoolExecutor() as threads:
        cancelled = [threads.submit(pool.acquire, timeout, cancel) for timeout in (None, LONG, 1.0)]
        until_waiting(pool, 3)
        other = threads.submit(pool.acquire, None)
        until_waiting(pool, 4)
        cancel.set()
        for one in cancelled:
            with pytest.raises(WaitCancelledError):
                one.result(LONG)
        assert not other.done()
        pool.release(held)
        assert other.result(LONG) == held


def test_a_wait_that_may_be_cancelled_ends_in_time_or_with_an_item() -> None:
    pool = Pool(counter(), 1)
    held = pool.acquire(0)
    cancel = threading.Event()
    for timeout in (-1.0, 0.0, 0.12):
        with pytest.raises(BackendUnavailableError, match="stayed busy"):
            pool.acquire(timeout, cancel)
    threading.Timer(0.02, pool.release, [held]).start()
    assert pool.acquire(LONG, cancel) == held
