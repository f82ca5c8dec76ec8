"""A pool lends each item to one user at a time, makes no more items than its limit, and loses none."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest

from ssruntime.backends.pool import Pool
from ssruntime.errors import BackendUnavailableError

LONG = 60.0
"""Seconds after which a wait fails. No wait here takes as long, unless threads deadlock."""


class BrokenMakerError(Exception):
    """An error that makers raise in these tests."""


def counter() -> Callable[[], int]:
    return itertools.count().__next__


class CountingCondition(threading.Condition):
    """A condition that counts the threads that wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self._enough = threading.Condition()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits; the thread is counted until it holds the lock again."""
        self._count(1)
        try:
            return super().wait(timeout)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._enough:
            self.waiting += change
            self._enough.notify_all()

    def until(self, number: int) -> None:
        """Returns once that many threads wait and have released the lock."""
        with self._enough:
            assert self._enough.wait_for(lambda: self.waiting >= number, LONG)
        with self:  # a counted thread holds this lock until it really waits
            pass


def watched(pool: Pool[int]) -> CountingCondition:
    """Returns a condition that counts waiting threads, and makes an unused pool wait on it."""
    pool._changed = CountingCondition()
    return pool._changed


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
    changed = watched(pool)
    held = pool.acquire(0)
    with ThreadPoolExecutor(1) as users:
        waiting = users.submit(pool.acquire, timeout)
        changed.until(1)
        assert not waiting.done()
        pool.release(held)
        assert waiting.result(LONG) == held


def test_each_release_serves_one_waiting_user() -> None:
    pool = Pool(counter(), 2)
    changed = watched(pool)
    held = [pool.acquire(0), pool.acquire(0)]
    with ThreadPoolExecutor(3) as users:
        waiting = [users.submit(pool.acquire, LONG) for _ in range(3)]
        changed.until(3)
        for item in held:
            pool.release(item)
        served = as_completed(waiting, timeout=LONG)
        assert {next(served).result(), next(served).result()} == set(held)
        changed.until(1)
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
    changed = watched(pool)
    with ThreadPoolExecutor(2) as users:
        unlucky = users.submit(pool.acquire, None)
        assert making.wait(LONG)
        waiting = users.submit(pool.acquire, LONG)
        changed.until(1)
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


def test_clear_drops_only_items_that_are_not_lent() -> None:
    pool = Pool(counter(), 2)
    held, free = pool.acquire(0), pool.acquire(0)
    pool.release(free)
    pool.clear()
    assert pool.acquire(0) == 2
    with pytest.raises(BackendUnavailableError):
        pool.acquire(0)
    pool.release(held)
    assert pool.acquire(0) == held


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
