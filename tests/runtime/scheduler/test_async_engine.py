"""Requests of an event loop share an engine, end within one pass when cancelled, and wait in bounds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from ssruntime import AsyncEngine, BackendUnavailableError, Chunk, ConfigError, GenerationConfig, PromptError, QueueFullError
from ssruntime.engine import Engine
from tests.runtime.conftest import OpenScript
from tests.runtime.scripted import random_script

T = TypeVar("T")

SCRIPT = random_script(21, vocab=24, history=True, agreement=0.8)
LONG = GenerationConfig(max_new_tokens=200, ignore_eos=True, temperature=0.8, seed=3)


@pytest.fixture(scope="module")
def engine(open_script: OpenScript) -> Engine:
    return open_script(SCRIPT, max_context=400, max_sequences=2)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine, for at most a minute."""
    return asyncio.run(asyncio.wait_for(main, 60))


def test_completions_are_those_of_the_engine(engine: Engine) -> None:
    prompts = [[1 + n % 5, n % 7] for n in range(12)]
    alone = [engine.generate(prompt, LONG) for prompt in prompts]

    async def together() -> list[Any]:
        async with AsyncEngine(engine) as requests:
            return await asyncio.gather(*(requests.generate(prompt, LONG) for prompt in prompts))

    found = run(together())
    assert [(one.token_ids, one.text, one.finish_reason, one.seed, one.prompt_tokens) for one in found] == [
        (one.token_ids, one.text, one.finish_reason, one.seed, one.prompt_tokens) for one in alone
    ]
    assert all(one.stats.emitted for one in found)


def test_chunks_are_those_of_a_stream(engine: Engine) -> None:
    expected = engine.generate([1, 2], LONG)

    async def read() -> list[Chunk]:
        async with AsyncEngine(engine) as requests:
            request = await requests.prepare([1, 2], LONG)
            return [chunk async for chunk in requests.stream(request)]

    chunks = run(read())
    assert [token for chunk in chunks for token in chunk.token_ids] == expected.token_ids
    assert "".join(chunk.text for chunk in chunks) == expected.text
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_a_prepared_request_has_its_settings(engine: Engine) -> None:
    request = engine.prepare([1, 2], LONG)
    assert engine.prepare(request) == request
    assert engine.generate(request).token_ids == engine.generate([1, 2], LONG).token_ids
    for refused in (lambda: engine.generate(request, LONG), lambda: engine.stream(request, LONG)):
        with pytest.raises(ConfigError, match="has its settings already"):
            refused()

    async def refuse() -> None:
        async with AsyncEngine(engine) as requests:
            with pytest.raises(ConfigError, match="has its settings already"):
                await requests.generate(request, LONG)

    run(refuse())


@pytest.fixture
def slow(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes every pass take 5 ms; the list has an entry for each."""
    real, passes = engine.backend.run, []

    def run_slowly(wanted: Any) -> Any:
        passes.append(len(wanted))
        time.sleep(0.005)
        return real(wanted)

    monkeypatch.setattr(engine.backend, "run", run_slowly)
    return passes


@pytest.mark.parametrize("how", ["task", "iterator"])
def test_a_cancelled_request_ends_within_one_pass(engine: Engine, slow: list[int], how: str) -> None:
    async def cancel() -> int:
        async with AsyncEngine(engine) as requests:
            stream = requests.stream([1, 2], LONG)
            await anext(stream)
            if how == "iterator":
                before = len(slow)
                await stream.aclose()
            else:
                task = asyncio.create_task(_rest(stream))
                await asyncio.sleep(0.02)
                before = len(slow)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await until(lambda: requests.running == 0)
            return len(slow) - before

    assert run(cancel()) <= 2  # the one that runs, and one that began meanwhile
    assert not engine._batch._members


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the engine has no event for it
        await asyncio.sleep(0.001)


async def _rest(stream: Any) -> None:
    async for _ in stream:
        pass


@pytest.mark.usefixtures("slow")
def test_requests_wait_in_order_up_to_a_limit(engine: Engine) -> None:
    async def crowd() -> tuple[list[int], int, int]:
        async with AsyncEngine(engine, max_waiting=2) as requests:
            ended: list[int] = []

            async def one(number: int) -> None:
                await requests.generate([1, 2], dataclasses.replace(LONG, max_new_tokens=10))
                ended.append(number)

            tasks = [asyncio.create_task(one(number)) for number in range(4)]
            await until(lambda: requests.running + requests.waiting == 4)
            state = requests.running, requests.waiting
            with pytest.raises(QueueFullError, match="2 requests wait"):
                await requests.generate([1], LONG)
            await asyncio.gather(*tasks)
            await requests.generate([1], dataclasses.replace(LONG, max_new_tokens=2))
            return ended, *state

    ended, running, waiting = run(crowd())
    assert (running, waiting) == (2, 2)
    assert sorted(ended[:2]) == [0, 1]
    assert sorted(ended[2:]) == [2, 3]


def test_a_request_that_is_cancelled_while_it_waits_never_runs(engine: Engine, slow: list[int]) -> None:
    async def cancel() -> int:
        async with AsyncEngine(engine) as requests:
            first = [asyncio.create_task(requests.generate([1, 2], LONG)) for _ in range(2)]
            await asyncio.sleep(0.02)
            third = asyncio.create_task(requests.generate([3], LONG))
            await asyncio.sleep(0.02)
            assert requests.waiting == 1
            third.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await third
            await asyncio.sleep(0.01)
            assert requests.waiting == 0
            await asyncio.gather(*first)
            return max(slow)

    assert run(cancel()) == 2


@pytest.mark.usefixtures("slow")
def test_errors_reach_the_caller_and_time_is_limited(engine: Engine) -> None:
    async def fail() -> str:
        async with AsyncEngine(engine) as requests:
            with pytest.raises(PromptError):
                await requests.generate([], LONG)
            found = await requests.generate([1, 2], LONG, timeout=0.05)
        with pytest.raises(BackendUnavailableError, match="closed"):
            await requests.generate([1, 2], LONG)
        return found.finish_reason

    assert run(fail()) == "timeout"


@pytest.mark.usefixtures("slow")
def test_time_in_the_queue_is_limited_and_a_place_is_free_when_a_request_has_ended(engine: Engine) -> None:
    short = dataclasses.replace(LONG, max_new_tokens=4)

    async def late() -> None:
        async with AsyncEngine(engine, max_waiting=1) as requests:
            running = [asyncio.create_task(requests.generate([1, 2], LONG)) for _ in range(2)]
            await until(lambda: requests.running == 2)
            begun = time.monotonic()
            with pytest.raises(BackendUnavailableError, match="all 2 sequences of this engine stayed busy"):
                await requests.generate([1], LONG, timeout=0.05)
            assert time.monotonic() - begun < 60
            assert not any(task.done() for task in running)
            await asyncio.gather(*running)
        async with AsyncEngine(engine, max_waiting=0) as requests:
            request = await requests.prepare([1, 2], short)
            for _ in range(20):
                await asyncio.gather(*(requests.generate(request) for _ in range(2)))

    run(late())


@pytest.mark.usefixtures("slow")
def test_another_thread_can_cancel_a_request(engine: Engine) -> None:
    event = threading.Event()
    threading.Timer(0.05, event.set).start()
    found = engine.generate([1, 2], LONG, cancel=event)
    assert found.finish_reason == "cancelled"
    assert found.token_ids == engine.generate([1, 2], LONG).token_ids[: len(found.token_ids)]


@pytest.mark.parametrize("how", ["task", "event", "stream"])
def test_a_wait_for_a_sequence_that_other_threads_hold_ends_when_it_is_cancelled(engine: Engine, how: str) -> None:
    streams = [engine.stream([1, 2], LONG) for _ in range(2)]
    for stream in streams:
        next(stream)

    async def cancel() -> None:
        async with AsyncEngine(engine) as requests:
            task = asyncio.create_task(requests.generate([3], LONG))
            await until(lambda: len(engine.backend._pool._waiting) == 1)  # type: ignore[attr-defined]
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await until(lambda: requests.running == 0)

    if how == "task":
        run(cancel())
    else:
        event = threading.Event()
        threading.Timer(0.02, event.set).start()
        if how == "event":
            found = engine.generate([3], LONG, cancel=event)
            assert (found.token_ids, found.finish_reason, found.prompt_tokens) == ([], "cancelled", 1)
        else:
            assert [chunk.finish_reason for chunk in engine.stream([3], LONG, cancel=event)] == ["cancelled"]
    assert not engine.backend._pool._waiting  # type: ignore[attr-defined]
    for stream in streams:
        assert next(stream).finish_reason is None
        stream.close()
    assert engine.generate([3], LONG).finish_reason == "length"
