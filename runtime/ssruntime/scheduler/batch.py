"""Continuous batching: the running requests of an engine share its passes, whichever threads they belong to.

No thread of its own runs the passes. A thread that waits for its request's next tokens runs passes for all
requests that are ready, unless another thread does so already. When its tokens are there, a thread that still
waits takes over. So a single caller decodes in its own thread, as without batching, and a stream that nobody
reads costs nothing once it is `READ_AHEAD` tokens ahead.

Requests come and go between two passes. Sequences that draft run their draft steps together; when each of
them has a proposal, one pass verifies all proposals. A chunk of a prompt has a pass to itself, before a round
of the others, because a pass computes as many rows for every sequence as for the longest one.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import abc
from collections.abc import Iterator
from typing import Final

from ssruntime.backends.base import Backend, Pass
from ssruntime.scheduler.member import Member, News
from ssruntime.scheduler.rounds import RoundRecorder

SHORT_CHUNK: Final = 64
"""Most prompt tokens in a pass while other requests are in rounds, which wait for it.

A longer chunk is hardly faster for each token."""
_batches: Final[weakref.WeakSet[Batch]] = weakref.WeakSet()


class Batch:
    """The running requests of an engine. Safe to use from several threads."""

    def __init__(self, backend: Backend) -> None:
        """Takes the open engines."""
        self._backend = backend
        self._lock = threading.Lock()
        self._members: tuple[Member, ...] = ()
        self._is_driven = False
        self._left_at = time.perf_counter()
        self._has_prefilled = False
        self._has_gap = False
        self._rounds = RoundRecorder()
        _batches.add(self)

    def first_chunk(self) -> int | None:
        """Returns the most prompt tokens in the first pass of a new request; None for the usual."""
        return SHORT_CHUNK if self._members else None

    def join(self, member: Member) -> None:
        """Adds a request."""
        member.clock = time.perf_counter()
        with self._lock:
            self._members = (*self._members, member)

    def leave(self, member: Member) -> None:
        """Removes a request, ended or not; afterwards no pass uses its KV cache."""
        with self._lock:
            member.has_left = True
            self._members = tuple(other for other in self._members if other is not member)
            self._has_gap = True
        member.idle.wait()
        member.sequence.close()

    def read(self, member: Member) -> Iterator[News]:
        """Yields the tokens of a request as they are committed, up to its end.

        Raises:
            Exception: what ended the request, after its tokens.
        """
        while True:
            news = member.take()
            if news is None:
                self._wait(member)
                continue
            yield news
            if news.is_last:
                return

    def abandon(self) -> None:
        """Makes the batch usable in a forked process, where the threads that used it do not exist."""
        self._lock = threading.Lock()
        self._is_driven = False
        for member in self._members:
            member.idle.set()

    def _wait(self, member: Member) -> None:
        """Returns when a request has news; until then this thread or another one runs passes for all."""
        if not self._becomes_driver(member):
            return
        try:
            while not member.has_news:
                self._step()
        finally:
            self._left_at = time.perf_counter()
            with self._lock:
                self._is_driven = False
            self._wake_a_driver()

    def _becomes_driver(self, member: Member) -> bool:
        """Waits until a request has news, or this thread must run the passes; returns whether it must."""
        try:
            while True:
                # In this order no news is missed: what comes after the check wakes a member that waits.
                member.woken.clear()
                member.is_waiting = True
                if member.has_news:
                    return False
                with self._lock:
                    if not self._is_driven:
                        self._is_driven = True
                        break
                member.woken.wait()
        except BaseException:  # an interrupt: the others may count on this thread
            member.is_waiting = False
            self._wake_a_driver()
            raise
        finally:
            member.is_waiting = False
        pause = time.perf_counter() - self._left_at
        for other in self._members:
            other.clock = min(other.clock + pause, time.perf_counter())
        return True

    def _wake_a_driver(self) -> None:
        """Lets a thread that waits take over, if there is one and no thread runs passes."""
        with self._lock:
            if not self._is_driven:
                for member in self._members:
                    if member.is_waiting and not member.has_news:
                        member.woken.set()
                        return

    def _step(self) -> None:
        """Runs one pass of the requests that are ready for it."""
        now = time.monotonic()
        ready = [member for member in self._members if not member.expire(now) and member.wanted is not None]
        passes: list[tuple[Member, Pass]] = []
        group = self._next_group(ready)
        if self._has_gap and len(ready) > 1:
            self._close_gap(group)
        with self._lock:  # a member that leaves waits for the end of its pass
            for member in group:
                wanted = member.wanted
                if wanted is not None:
                    member.idle.clear()
                    passes.append((member, wanted))
        try:
            if passes:
                self._run(passes, sum(member.wanted.kind != "prefill" for member in ready if member.wanted is not None))
        finally:
            for member, _ in passes:
                member.idle.set()

    def _next_group(self, ready: abc.Sequence[Member]) -> list[Member]:
        """Returns the requests of the next pass."""
        kinds: dict[str, list[Member]] = {"draft": [], "prefill": [], "verify": []}
        for member in ready:
            if member.wanted is not None:
                kinds[member.wanted.kind].append(member)
        draft, prefill, verify = kinds.values()
        for member in prefill[:1]:
            member.sequence.prefill_chunk = SHORT_CHUNK if draft or verify else member.slot.prefill_chunk
        if draft:
            return draft
        self._has_prefilled = bool(prefill) and not (verify and self._has_prefilled)
        return prefill[:1] if self._has_prefilled else verify

    def _close_gap(self, group: abc.Sequence[Member]) -> None:
        """Moves a request to the place of one that has left, where passes that they share cost less."""
        self._has_gap = False
        for member in group:
            # In the middle of a draft, the KV of its tokens would be lost.
            if member.wanted is not None and member.wanted.kind == "verify":
                with self._lock:  # a member that leaves gives its own slot back
                    if not member.has_left:
                        moved = self._backend.moved(member.slot, member.sequence.start)
                        if moved is not member.slot:
                            member.slot, self._has_gap = moved, True
                            return

    def _run(self, passes: abc.Sequence[tuple[Member, Pass]], sequences: int) -> None:
        """Runs a pass and gives the outputs to the sequences.

        Args:
            passes: the requests and their passes, all of one kind.
            sequences: number of sequences that are in a round.
        """
        first = passes[0][0]
        before = first.slot.engine_seconds
        try:
            outputs = self._backend.run([(member.slot, wanted) for member, wanted in passes])
        except Exception as err:  # noqa: BLE001 - each owner gets it
            for member, _ in passes:
                member.fail(err)
            return
        self._rounds.add(passes, first.slot.engine_seconds - before, sequences)
        for (member, _), output in zip(passes, outputs, strict=True):
            try:
                member.commit(output)
            except Exception as err:  # noqa: BLE001 - a plugged-in part may raise anything; the other requests go on
                member.fail(err)
            except BaseException as err:  # an interrupt: this sequence cannot go on
                member.fail(err)
                raise


def _abandon_all() -> None:
    for batch in list(_batches):
        batch.abandon()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_abandon_all)
