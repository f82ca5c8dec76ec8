"""When requests are sent: in a closed loop of workers, or at random arrivals."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator

import numpy as np

Send = Callable[[int, float | None], Awaitable[None]]
"""Sends the request of an index, which was due at a time (None in a closed loop), and waits for its end."""


def arrival_times(rate: float, num_requests: int, seed: int) -> list[float]:
    """Returns when requests arrive, in seconds after the first: a Poisson process that the seed fixes.

    Args:
        rate: mean arrivals per second.
        num_requests: number of arrivals, at least one.
        seed: seed of the gaps, which are exponential and independent.
    """
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, size=num_requests - 1)
    return [0.0, *np.cumsum(gaps).tolist()]


async def closed_loop(send: Send, num_requests: int, concurrency: int) -> None:
    """Keeps `concurrency` requests in flight until all are sent, and waits for their ends.

    Raises:
        Exception: the first that `send` raises; the other requests are then cancelled.
    """
    indices = iter(range(num_requests))

    async def work() -> None:
        for index in indices:
            await send(index, None)

    with _first_error():
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(concurrency, num_requests)):
                workers.create_task(work())


async def open_loop(
    send: Send,
    arrivals: list[float],
    concurrency: int | None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Sends each request at its arrival, whether or not others have ended, and waits for their ends.

    Args:
        send: sends a request.
        arrivals: seconds after the start, in ascending order.
        concurrency: most requests in flight, the others wait for their turns in order; None for no limit.
        clock: seconds of the clock that `send` gets the arrivals in.
        sleep: waits for seconds of that clock.

    Raises:
        Exception: the first that `send` raises; the other requests are then cancelled.
    """
    gate = asyncio.Semaphore(concurrency or len(arrivals))

    async def send_in_turn(index: int, due: float) -> None:
        async with gate:
            await send(index, due)

    start = clock()
    with _first_error():
        async with asyncio.TaskGroup() as tasks:
            for index, arrival in enumerate(arrivals):
                if (delay := start + arrival - clock()) > 0:
                    await sleep(delay)
                tasks.create_task(send_in_turn(index, start + arrival))


@contextlib.contextmanager
def _first_error() -> Iterator[None]:
    """Raises the first error of a task group instead of the group."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
