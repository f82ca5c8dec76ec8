"""A bounded pool: creates items on first use, lends each to one user at a time, keeps them for reuse."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, NoReturn, TypeVar, cast

from ssruntime.errors import BackendUnavailableError

logger = logging.getLogger(__name__)

T = TypeVar("T")

SUSPICIOUS_WAIT: Final = 5.0
"""Seconds after which a thread is warned that it may be waiting for itself."""
_PATIENCE: Final = 0.05
"""Seconds within which a waiting thread notices that its wait is cancelled."""


class WaitCancelledError(Exception):
    """A wait for an item was cancelled before there was one."""


def _refuse() -> NoReturn:
    raise AssertionError("a closed pool makes no items")


@dataclass(slots=True, eq=False)
class _Waiter:
    """A thread that waits for an item. One of the outcomes is set before `woken`."""

    woken: threading.Event = field(default_factory=threading.Event)
    item: object = None
    has_item: bool = False
    may_make: bool = False


class Pool(Generic[T]):
    """Lends at most `limit` items at a time; further callers wait, and get items in the order they came."""

    def __init__(self, make: Callable[[], T], limit: int, *, rank: Callable[[T], int] | None = None) -> None:
        """Creates an empty pool.

        Args:
            make: makes an item.
            limit: most items.
            rank: of the free items, the one of lowest rank is lent; None for the one given back last.
        """
        self._make: Callable[[], T] = make
        self._rank = rank
        self._limit = limit
        self._made = 0
        self._free: list[T] = []
        self._waiting: deque[_Waiter] = deque()
        self._holders: dict[int, int] = {}
        """Thread that each lent item was lent to, by the item's `id`."""
        self._lock = threading.Lock()
        self._refusal: BackendUnavailableError | None = None

    def acquire(self, timeout: float | None, cancel: threading.Event | None = None) -> T:
        """Returns a free item, or a new one while fewer than `limit` exist.

        Args:
            timeout: longest wait for an item, in seconds; None waits without a limit.
            cancel: once another thread sets it, the wait ends.

        Raises:
            BackendUnavailableError: if no item is released in time, or the pool is closed.
            WaitCancelledError: if the wait was cancelled.
        """
        item = self._lent(timeout, cancel)
        self._holders[id(item)] = threading.get_ident()
        return item

    def release(self, item: T) -> None:
        """Gives an item back: to the first caller that waits, if there is one. A closed pool drops it."""
        self._holders.pop(id(item), None)
        with self._lock:
            self._give(item)

    def exchange(self, item: T, use: Callable[[T], None]) -> bool:
        """Exchanges a lent item for a free one of lower rank; returns False if there is none.

        Args:
            item: item that the caller has acquired.
            use: called with the new item before the old one is given back.
        """
        assert self._rank is not None
        with self._lock:
            if not self._free or self._refusal is not None:
                return False
            place = self._next()
            if self._rank(self._free[place]) >= self._rank(item):
                return False
            better = self._free.pop(place)
        self._holders[id(better)] = self._holders.get(id(item), threading.get_ident())
        try:
            use(better)
        except BaseException:
            self.release(better)
            raise
        self.release(item)
        return True

    def close(self, refusal: BackendUnavailableError) -> list[T]:
        """Drops the free items, and the others once they are released; refuses waiting and later callers.

        Returns:
            The free items.
        """
        with self._lock:
            self._refusal = refusal
            free, self._free = self._free, []
            self._make = _refuse  # what made items may keep much memory
            while self._waiting:
                self._waiting.popleft().woken.set()
        return free

    def abandon(self, refusal: BackendUnavailableError) -> None:
        """Closes the pool in a forked process, in which no other thread is left to release the lock."""
        self._lock = threading.Lock()
        self._waiting = deque()
        self._refusal = refusal
        self._free = []

    def _lent(self, timeout: float | None, cancel: threading.Event | None) -> T:
        waiter = _Waiter()
        with self._lock:
            if self._refusal is not None:
                raise self._refusal
            if self._free:  # then no caller waits
                return self._free.pop(self._next())
            if self._made >= self._limit:
                self._waiting.append(waiter)
            else:
                self._made += 1
                waiter.may_make = True
        if not waiter.may_make:
            self._wait(waiter, timeout, cancel)
        if waiter.has_item:
            return cast("T", waiter.item)
        make = self._make
        try:
            return make()
        except BaseException:
            with self._lock:
                self._pass_on_right_to_make()
            raise

    def _wait(self, waiter: _Waiter, timeout: float | None, cancel: threading.Event | None) -> None:
        """Waits until a waiter has an item or may make one.

        Raises:
            BackendUnavailableError: if neither happens in time, or the pool is closed.
            WaitCancelledError: if the wait was cancelled.
        """
        try:
            if timeout is not None and timeout <= SUSPICIOUS_WAIT:
                _wait_for(waiter.woken, timeout, cancel)
            elif not _wait_for(waiter.woken, SUSPICIOUS_WAIT, cancel):
                self._warn_of_waiting_for_itself()
                _wait_for(waiter.woken, None if timeout is None else timeout - SUSPICIOUS_WAIT, cancel)
        except BaseException:  # cancelled, or an interrupt: what was handed over meanwhile must not be lost
            with self._lock:
                self._leave(waiter)
            raise
        with self._lock:
            if waiter.has_item or waiter.may_make:
                return
            self._leave(waiter)
            if self._refusal is not None:
                raise self._refusal
        raise BackendUnavailableError(
            f"all {self._limit} sequences of this engine stayed busy for {timeout:g} s",
            "raise max_sequences (each sequence needs a KV cache of its own) or the timeout",
        )

    def _warn_of_waiting_for_itself(self) -> None:
        own = threading.get_ident()
        if sum(holder == own for holder in list(self._holders.values())) >= self._limit:
            logger.warning(
                "a thread waits for a free sequence, and has itself begun all %d that are in use: finish or close one of its streams,"
                " or raise max_sequences",
                self._limit,
            )

    # The functions below are called with the lock held.

    def _next(self) -> int:
        """Returns the place of the free item to lend."""
        rank = self._rank
        return -1 if rank is None else min(range(len(self._free)), key=lambda n: rank(self._free[n]))

    def _give(self, item: T) -> None:
        if self._refusal is not None:
            return
        if not self._waiting:
            self._free.append(item)
            return
        waiter = self._waiting.popleft()
        waiter.item, waiter.has_item = item, True
        waiter.woken.set()

    def _pass_on_right_to_make(self) -> None:
        if self._waiting:
            waiter = self._waiting.popleft()
            waiter.may_make = True
            waiter.woken.set()
        else:
            self._made -= 1

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.has_item:
            self._give(cast("T", waiter.item))
        elif waiter.may_make:
            self._pass_on_right_to_make()
        elif waiter in self._waiting:
            self._waiting.remove(waiter)


def _wait_for(event: threading.Event, seconds: float | None, cancel: threading.Event | None) -> bool:
    """Returns whether an event is set in time.

    Raises:
        WaitCancelledError: if `cancel` was set first.
    """
    if cancel is None:
        return event.wait(seconds)
    end = None if seconds is None else time.monotonic() + seconds
    while not cancel.is_set():
        left = _PATIENCE if end is None else min(_PATIENCE, end - time.monotonic())
        if event.wait(left):
            return True
        if left < _PATIENCE:
            return False
    raise WaitCancelledError
