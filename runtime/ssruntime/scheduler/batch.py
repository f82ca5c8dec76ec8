"""Continuous batching: the running requests of an engine share its passes, whichever threads they belong to.

There is no scheduler thread. A thread that waits for its request's next tokens runs the passes of all
requests that are ready, unless another thread is doing so. When it has its tokens, another waiting thread
takes over. So a single caller decodes in its own thread, as without batching. A stream that nobody reads
stops once it is `READ_AHEAD` tokens ahead.

Requests come and go between two passes. Sequences that draft run their draft steps together; when each of
them has a proposal, one pass verifies all proposals. A chunk of a prompt has a pass to itself, before a round
of the others, because a pass computes as many rows for every sequence as for the longest one.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
import weakref
from collections import abc
from collections.abc import Iterator
from typing import Final

from ssruntime.backends.base import Backend, Pass, Slot
from ssruntime.errors import BackendUnavailableError
from ssruntime.scheduler.member import Member, News
from ssruntime.scheduler.rounds import RoundRecorder

SHORT_CHUNK: Final = 96
"""Most prompt tokens in a pass while other requests are in rounds, which wait for it.

A longer chunk is hardly faster for each token. Chunks of a prompt are about equally long: a short rest would
cost nearly as much as a chunk."""
_batches: Final[weakref.WeakSet[Batch]] = weakref.WeakSet()


class Batch:
    """The running requests of an engine. Safe to use from several threads."""

    def __init__(self, backend: Backend) -> None:
        """Takes the open engines."""
        self._backend = backend
        # Reentrant, because the garbage collector may close a stream, and so end a request, at any moment.
        self._lock = threading.RLock()
        self._members: tuple[Member, ...] = ()
        self._driver: int | None = None
        """The thread that runs the passes."""
        self._is_stepping = False
        self._in_pass: tuple[Member, ...] = ()
        """The requests whose KV caches a pass uses now."""
        self._late: list[Member] = []
        """Requests that ended in the driver's own thread while it ran a pass or prepared one."""
        self._left_at = time.perf_counter()
        self._has_prefilled = False
        self._has_gap = False
        self._rounds = RoundRecorder()
        _batches.add(self)

    @property
    def tokens(self) -> int:
        """Number of tokens, of prompts and texts, of the running requests."""
        return sum(len(member.sequence.ids) for member in self._members if not member.has_left)

    def first_chunk(self, tokens: int) -> int | None:
        """Returns the most prompt tokens in the first pass of a prompt of some tokens; None for the usual."""
        return _even_chunk(tokens) if self._members else None

    def join(self, member: Member) -> None:
        """Adds a request."""
        member.clock = time.perf_counter()
        with self._lock:
            self._members = (*(other for other in self._members if not other.has_left), member)

    def leave(self, member: Member) -> None:
        """Removes a request, ended or not, and gives its slot back as soon as no pass uses it."""
        with self._lock:
            member.has_left = True
            self._members = tuple(other for other in self._members if other is not member)
            is_driver = self._driver == threading.get_ident()
            if is_driver and self._is_stepping:  # a garbage collection in the middle of `_step`
                self._late.append(member)
                return
            if member in self._in_pass:
                member.idle = threading.Event()
        if is_driver:  # an interrupt came before this thread could hand over
            self._hand_over()
        if member.idle is not None and not sys.is_finalizing():  # at the end of a process, no pass ends any more
            member.idle.wait()
        self._give_back(member)

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
        self._lock = threading.RLock()
        self._driver, self._is_stepping, self._in_pass = None, False, ()
        for member in self._members:
            member.abandon()

    def _wait(self, member: Member) -> None:
        """Returns when a request has news; until then this thread or another one runs passes for all."""
        try:
            if self._becomes_driver(member):
                while not member.has_news:
                    self._step()
        finally:
            member.is_waiting = False
            self._hand_over()

    def _becomes_driver(self, member: Member) -> bool:
        """Waits until a request has news, or this thread must run the passes; returns whether it must."""
        while True:
            # In this order no news is missed: what comes after the check wakes a member that waits.
            member.woken.clear()
            member.is_waiting = True
            if member.has_news:
                return False
            with self._lock:
                if self._driver is None:
                    self._driver = threading.get_ident()
                    break
            member.woken.wait()
        member.is_waiting = False
        pause = time.perf_counter() - self._left_at
        for other in self._members:
            other.clock = min(other.clock + pause, time.perf_counter())
        return True

    def _hand_over(self) -> None:
        """Lets a thread that waits take over, if there is one and no other thread runs passes."""
        with self._lock:
            if self._driver == threading.get_ident():
                self._left_at = time.perf_counter()
                self._driver, self._is_stepping, self._in_pass = None, False, ()
            if self._driver is None:
                for member in self._members:
                    if member.is_waiting and not member.has_news:
                        member.woken.set()
                        return

    def _step(self) -> None:
        """Runs one pass of the requests that are ready for it."""
        self._is_stepping = True
        try:
            ready = self._ready()
            group = self._next_group(ready)
            if self._has_gap and len(group) > 1 and group[0][1].kind == "verify":
                self._close_gap([member for member, _ in group])
            with self._lock:  # a member that leaves waits for the end of its pass
                passes = [one for one in group if not one[0].has_left]
                self._in_pass = tuple(member for member, _ in passes)
            rounds = sum(wanted.kind != "prefill" for _, wanted in ready)
            most = self._backend.capabilities.max_rows
            for first in range(0, len(passes), most):
                self._run(passes[first : first + most], min(rounds, most))
        finally:
            with self._lock:
                self._is_stepping = False
                used, self._in_pass = self._in_pass, ()
                late, self._late = self._late, []
            for member in used:
                if member.idle is not None:
                    member.idle.set()
            for member in late:
                self._give_back(member)

    def _ready(self) -> list[tuple[Member, Pass]]:
        """Returns the requests that are ready for a pass, with that pass; ends those whose time is up."""
        now, ready = time.monotonic(), []
        for member in self._members:
            wanted = member.ready(now)
            if wanted is not None:
                ready.append((member, wanted))
        return ready

    def _next_group(self, ready: abc.Sequence[tuple[Member, Pass]]) -> list[tuple[Member, Pass]]:
        """Returns the requests of the next pass, and their passes."""
        draft, prefill, verify = ([one for one in ready if one[1].kind == kind] for kind in ("draft", "prefill", "verify"))
        for member, wanted in prefill[:1]:
            left = len(member.sequence.ids) - wanted.start - len(wanted.trunk)
            member.sequence.prefill_chunk = _even_chunk(left) if draft or verify else member.slot.prefill_chunk
        if draft:
            return draft
        self._has_prefilled = bool(prefill) and not (verify and self._has_prefilled)
        return prefill[:1] if self._has_prefilled else verify

    def _close_gap(self, group: abc.Sequence[Member]) -> None:
        """Moves a request to the place of one that has left, where passes that they share cost less.

        Args:
            group: requests that want a verify pass; in the middle of a draft, its KV would be lost.
        """
        member = max(group, key=lambda one: one.slot.place)

        def use(slot: Slot) -> None:
            member.slot = slot

        with self._lock:  # a member that leaves gives its own slot back
            self._has_gap = not member.has_left and self._backend.move(member.slot, member.sequence.start, use)

    def _run(self, passes: abc.Sequence[tuple[Member, Pass]], sequences: int) -> None:
        """Runs a pass and gives the outputs to the sequences.

        Args:
            passes: the requests and their passes, all of one kind.
            sequences: number of sequences that share the passes of a round.
        """
        first = passes[0][0]
        before = first.slot.engine_seconds
        try:
            if passes[0][1].kind == "prefill":
                passes = [(member, self._begun(member)) for member, _ in passes]
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
            except BaseException as err:  # an interrupt of this thread: the sequence cannot go on
                member.fail(_interrupted(err))
                raise

    def _begun(self, member: Member) -> Pass:
        """Returns the next pass of a prompt."""
        try:
            return member.begin()
        except Exception:
            raise
        except BaseException as err:  # an interrupt of this thread: the sequence cannot go on
            member.fail(_interrupted(err))
            raise

    def _give_back(self, member: Member) -> None:
        """Gives the slot of a request back that has left."""
        try:
            if not sys.is_finalizing():  # a thread may still be running a pass of it
                member.keep_prefix()
            member.close()
        finally:
            self._backend.release(member.slot)
            self._has_gap = True


def _even_chunk(tokens: int) -> int:
    """Returns the length of the next chunk if a prompt's last tokens are split evenly, into as few as may be.

    Args:
        tokens: number of these tokens; may be 0.
    """
    chunks = max(1, math.ceil(tokens / SHORT_CHUNK))
    return max(1, math.ceil(tokens / chunks))


def _interrupted(cause: BaseException) -> BackendUnavailableError:
    error = BackendUnavailableError("another thread, which ran this request's pass, was interrupted", "send the request again")
    error.__cause__ = cause
    return error


def _abandon_all() -> None:
    for batch in list(_batches):
        batch.abandon()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_abandon_all)
