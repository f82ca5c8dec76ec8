"""An engine for asyncio: requests share passes, and waiting for one blocks no event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

from ssruntime.checks import check_int
from ssruntime.config import GenerationConfig
from ssruntime.engine import Engine
from ssruntime.errors import BackendUnavailableError
from ssruntime.logprobs import TokenLogprob
from ssruntime.preparation import Preparer, Request
from ssruntime.request_queue import ChunkQueue, Places
from ssruntime.results import Chunk, Completion
from ssruntime.text.prompt import Prompt

DEFAULT_MAX_WAITING: Final = 64


class AsyncEngine:
    """Decodes requests of one event loop with an engine, which other threads may use too.

    A request ends within one pass when its task is cancelled or its iterator is closed, and at once while it
    waits for a sequence.

    Attributes:
        engine: the engine.
    """

    def __init__(self, engine: Engine, *, max_waiting: int = DEFAULT_MAX_WAITING) -> None:
        """Takes an engine; close this object before it.

        Args:
            engine: the engine.
            max_waiting: most requests that wait for a free sequence; further ones are refused.

        Raises:
            ConfigError: if the number is below 0.
        """
        check_int("max_waiting", max_waiting, 0)
        self.engine = engine
        self._places = Places(engine.max_sequences, max_waiting)
        self._is_closed = False
        # A thread for each sequence, and one to encode prompts: the last one never waits for a sequence.
        self._threads = ThreadPoolExecutor(engine.max_sequences, thread_name_prefix="ssruntime")
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="ssruntime-encoder")

    @property
    def preparer(self) -> Preparer:
        """What checks and completes requests."""
        return self.engine.preparer

    @property
    def max_requests(self) -> int:
        """The most requests that run and wait together."""
        return self._places.limit

    @property
    def kv_usage(self) -> float:
        """The share, 0 to 1, of all KV-cache entries that running requests use."""
        return self.engine.kv_usage

    @property
    def running(self) -> int:
        """The number of requests that have a sequence."""
        return self._places.running

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a sequence."""
        return self._places.waiting

    async def prepare(self, prompt: Prompt | Request, config: GenerationConfig | None = None, *, prefix_namespace: str = "") -> Request:
        """Returns a checked request; see `Engine.prepare`."""
        prepare = functools.partial(self.engine.prepare, prompt, config, prefix_namespace=prefix_namespace)
        if isinstance(prompt, Request):
            return prepare()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._encoder, prepare)
        except RuntimeError:
            if self._is_closed:
                raise _closed() from None
            raise

    async def generate(
        self, prompt: Prompt | Request, config: GenerationConfig | None = None, *, timeout: float | None = None
    ) -> Completion:
        """Returns the completion of a prompt; arguments and errors are those of `Engine.generate`.

        Raises:
            QueueFullError: if too many requests wait already.
        """
        request = await self.prepare(prompt, config)
        text: list[str] = []
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        last: Chunk | None = None
        async with contextlib.aclosing(self.stream(request, timeout=timeout)) as chunks:
            async for chunk in chunks:
                text.append(chunk.text)
                tokens += chunk.token_ids
                logprobs += chunk.logprobs
                last = chunk
        assert last is not None
        assert last.finish_reason is not None
        assert last.stats is not None
        return Completion(
            text="".join(text),
            token_ids=tokens,
            finish_reason=last.finish_reason,
            seed=request.settings.seed,
            stats=last.stats,
            prompt_tokens=len(request.ids),
            logprobs=None if request.settings.logprobs is None else logprobs,
        )

    async def stream(
        self, prompt: Prompt | Request, config: GenerationConfig | None = None, *, timeout: float | None = None
    ) -> AsyncGenerator[Chunk]:
        """Yields the text as it is generated; arguments and errors are those of `Engine.stream`.

        Raises:
            QueueFullError: if too many requests wait already.
        """
        running = self.start(await self.prepare(prompt, config), timeout=timeout)
        try:
            async for chunk in running:
                yield chunk
        finally:
            running.cancel()

    def start(self, request: Request, *, timeout: float | None = None) -> AsyncStream:
        """Begins a request, and returns an iterator over its chunks, which raises what `stream` raises.

        Args:
            request: request from `prepare`.
            timeout: as in `stream`.

        Raises:
            QueueFullError: if too many requests wait already.
            BackendUnavailableError: if this object is closed.
        """
        if self._is_closed:
            raise _closed()
        self._places.take()
        return AsyncStream(self.engine, request, timeout, self._threads, on_end=self._places.give_back)

    async def close(self) -> None:
        """Waits until the requests have ended, and refuses new ones; the engine stays open."""
        self._is_closed = True
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._encoder.shutdown)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        await self.close()


class AsyncStream(ChunkQueue):
    """A request that has begun, as an iterator over its chunks. Cancel it when no more chunks are wanted."""

    def __init__(
        self, engine: Engine, request: Request, timeout: float | None, threads: ThreadPoolExecutor, *, on_end: Callable[[], None]
    ) -> None:
        """Begins the request in one of the threads; see `AsyncEngine.start`, which calls this.

        Args:
            engine: the engine.
            request: prepared request.
            timeout: seconds that the request may take; None sets no limit.
            threads: a thread for each sequence of the engine.
            on_end: called in the event loop once the request uses no thread and no sequence.
        """
        super().__init__()
        self._engine, self._request, self._timeout = engine, request, timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._loop = asyncio.get_running_loop()
        self._cancel = threading.Event()
        self._on_end = on_end
        self._work = threads.submit(self._run)
        self._work.add_done_callback(lambda _: _call(self._loop, self._end))
        self._timer = None if timeout is None else self._loop.call_later(timeout, self._expire)

    def cancel(self) -> None:
        """Ends the request, within one pass if it is decoding; of no effect after its end."""
        if self._timer is not None:
            self._timer.cancel()
        self._cancel.set()
        self._work.cancel()

    def _run(self) -> None:
        try:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            for chunk in self._engine.stream(self._request, timeout=left, cancel=self._cancel):
                _call(self._loop, self.put, chunk)
        except BaseException as err:  # noqa: BLE001 - the loop's task gets it
            _call(self._loop, self.put, err)

    def _end(self) -> None:
        self._on_end()
        self.end()

    def _expire(self) -> None:
        if self._work.cancel():  # it was still waiting
            self.put(_busy(self._engine.max_sequences, self._timeout))


def _closed() -> BackendUnavailableError:
    return BackendUnavailableError("this engine takes no more requests: it is closed", "make another AsyncEngine")


def _busy(sequences: int, timeout: float | None) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"all {sequences} sequences of this engine stayed busy for {timeout:g} s", "raise max_sequences or the timeout"
    )


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *given: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(function, *given)
