"""A request in a batch: what its own thread reads of it, and what the thread that runs the passes writes."""

from __future__ import annotations

import threading
import time
from collections import abc, deque
from typing import Final, NamedTuple

from ssruntime.backends.base import Pass, Slot, StepOutput
from ssruntime.logprobs import TokenLogprob
from ssruntime.planning.batch_costs import BatchCosts
from ssruntime.scheduler.cached_prefix import CachedPrefix
from ssruntime.scheduler.single import TIMEOUT
from ssruntime.sequence import Sequence
from ssruntime.text.output import OutputText

CANCELLED: Final = "cancelled"
"""Finish reason of a request that was cancelled."""
READ_AHEAD: Final = 64
"""Number of unread tokens from which on a request pauses."""


class News(NamedTuple):
    """What a request has committed.

    Attributes:
        tokens: new tokens; empty if the request was cancelled or its time was up.
        text: their text, if stop strings made it necessary to have it at once; otherwise None.
        is_last: whether the text has ended with these tokens.
        logprobs: log probabilities of the tokens; empty if they were not asked for.
    """

    tokens: abc.Sequence[int]
    text: str | None = None
    is_last: bool = False
    logprobs: abc.Sequence[TokenLogprob] = ()


class Member:
    """A request in a batch.

    Attributes:
        sequence: its sequence.
        slot: its KV cache.
        costs: record of what passes cost; None if the request's planner learns nothing.
        clock: time of `time.perf_counter` from which on the next tokens count.
        is_waiting: whether its thread waits for `woken`.
        woken: set when there is news, or when its thread must run the passes.
        has_left: whether no further pass may begin.
        idle: set at the end of the pass that used its KV cache when it left; None if none did.
    """

    def __init__(
        self,
        sequence: Sequence,
        slot: Slot,
        text: OutputText,
        *,
        costs: BatchCosts | None = None,
        prefix: CachedPrefix | None = None,
        deadline: float | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        """Takes the parts of a request at its beginning.

        Args:
            sequence: its sequence.
            slot: KV cache that no other request uses meanwhile.
            text: its text. With stop strings, the sequence writes to it.
            costs: record of what passes cost; None if the request's planner learns nothing.
            prefix: what it finds in the prefix cache; None if the cache is off.
            deadline: time of `time.monotonic` from which on no pass begins; None sets no limit.
            cancel: once it is set, no pass begins.
        """
        self.sequence = sequence
        self.slot = slot
        self.costs = costs
        self.clock = 0.0
        self.is_waiting = False
        self.woken = threading.Event()
        self.has_left = False
        self.idle: threading.Event | None = None
        self._text = text
        self._prefix = prefix
        self._deadline = deadline
        self._cancel = cancel
        self._news: deque[News] = deque()
        # Tokens given to the reader's thread, and those that it took: each number is changed by one thread.
        self._told = self._taken = 0
        self._error: BaseException | None = None
        self._is_first = True
        self._is_abandoned = False

    @property
    def has_news(self) -> bool:
        """Whether tokens or an error wait for the reader."""
        return bool(self._news) or self._error is not None

    def ready(self, now: float) -> Pass | None:
        """Returns the pass that the request is ready for.

        That is None if the request has ended or left, or waits for its reader. One that was cancelled or
        whose time is up ends here.

        Args:
            now: time of `time.monotonic`.
        """
        wanted = self.sequence.next_pass
        if wanted is None or self.has_left or self._error is not None:
            return None
        is_late = self._deadline is not None and now >= self._deadline
        if is_late or (self._cancel is not None and self._cancel.is_set()):
            self.sequence.cancel(TIMEOUT if is_late else CANCELLED)
            self._tell(News((), is_last=True))
            return None
        if self._told - self._taken >= READ_AHEAD:
            self.clock = time.perf_counter()  # its reader's time is not that of decoding
            return None
        return wanted

    def take(self) -> News | None:
        """Returns the next news; None if there is none yet.

        Raises:
            BaseException: what ended the request.
        """
        if self._news:
            news = self._news.popleft()
            self._taken += len(news.tokens)
            return news
        if self._error is not None:
            raise self._error
        return None

    def abandon(self) -> None:
        """Forgets the threads that used the request, in a forked process."""
        self.woken, self.idle = threading.Event(), None
        self._is_abandoned = True

    def close(self) -> None:
        """Ends the sequence, if it has not ended."""
        if not self._is_abandoned:  # a thread that was not forked may have been running it
            self.sequence.close()

    def fail(self, error: BaseException) -> None:
        """Ends the request with an error, which its reader gets."""
        self._error = error
        self.woken.set()

    def begin(self) -> Pass:
        """Returns the next pass of the prompt, which begins after what the prefix cache has of it."""
        if self._prefix is not None:
            self._prefix.begin(self.sequence, self.slot)
        assert self.sequence.next_pass is not None
        return self.sequence.next_pass

    def keep_prefix(self) -> None:
        """Leaves the KV of the text so far in the prefix cache, unless something went wrong."""
        if self._prefix is not None and self._error is None and not self._is_abandoned:
            self._prefix.keep(self.sequence, self.slot)

    def commit(self, output: StepOutput) -> None:
        """Gives the output of its pass to the sequence, and new tokens to the reader."""
        new = self.sequence.commit(output)
        if self._is_first:  # a pass of the prompt; other requests can go on from its end at once
            self.keep_prefix()
        if not new:
            return
        now, stats = time.perf_counter(), self.sequence.stats
        if self._is_first:
            self._is_first, stats.prefill_s, self.slot.engine_seconds = False, now - self.clock, 0.0
        else:
            stats.decode_s += now - self.clock
            stats.engine_s = self.slot.engine_seconds
        self.clock = now
        is_last = self.sequence.finish_reason is not None
        # With stop strings the sequence writes to the text, which belongs to the reader again at the end.
        text = self._text.take() if self._text.has_stops and not is_last else None
        self._tell(News(new, text, is_last, self.sequence.logprobs[-len(new) :]))

    def _tell(self, news: News) -> None:
        self._told += len(news.tokens)
        self._news.append(news)
        if self.is_waiting:
            self.woken.set()
