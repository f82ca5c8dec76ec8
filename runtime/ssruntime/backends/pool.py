"""A bounded pool: creates items on first use, lends each to one user at a time, keeps them for reuse."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from ssruntime.errors import BackendUnavailableError

T = TypeVar("T")


class Pool(Generic[T]):
    """Lends at most `limit` items at a time; further callers wait until an item is released."""

    def __init__(self, make: Callable[[], T], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._made = 0
        self._free: list[T] = []
        self._changed = threading.Condition()

    def acquire(self, timeout: float | None) -> T:
        """Returns a free item, or a new one while fewer than `limit` exist.

        Args:
            timeout: longest wait for an item, in seconds; None waits without a limit.

        Raises:
            BackendUnavailableError: if no item is released in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._free and self._made >= self._limit:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise BackendUnavailableError(
                        f"all {self._limit} sequences of this engine stayed busy for {timeout:g} s",
                        "raise max_sequences (each sequence needs a KV cache of its own) or the timeout",
                    )
                # What `wait` returns is not used: a release at the moment of the timeout must not be lost.
                self._changed.wait(left)
            if self._free:
                return self._free.pop()
            self._made += 1
        try:
            return self._make()
        except BaseException:
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise

    def release(self, item: T) -> None:
        """Gives an item back."""
        with self._changed:
            self._free.append(item)
            self._changed.notify()

    def clear(self) -> None:
        """Drops the free items; items in use stay valid and return to the pool when they are released."""
        with self._changed:
            self._made -= len(self._free)
            self._free.clear()
            self._changed.notify_all()
