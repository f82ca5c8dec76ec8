"""Runs a load test: asks for the model, warms the server up, sends the load of each run, and reports it."""

from __future__ import annotations

import asyncio
import platform
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ssruntime.machine import cpu_model, logical_cpus
from ssruntime.version import version
from sstool.bench_serve.address import ServerAddress
from sstool.bench_serve.client import ApiClient
from sstool.bench_serve.errors import RequestFailedError, ServerError
from sstool.bench_serve.load import arrival_times, closed_loop, open_loop
from sstool.bench_serve.options import ServeBenchOptions
from sstool.bench_serve.report import LoadReport, ServeReport
from sstool.bench_serve.requests import PATHS, RequestPlan, choose_endpoint
from sstool.bench_serve.rows import RequestRow, Status, Timing, make_row
from sstool.bench_serve.stream import StreamRecorder
from sstool.bench_serve.summary import Measured, summarize
from sstool.prompts import PromptRecord

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with the number of finished requests of a run, their total number, and the name of the run."""
OnRow: TypeAlias = Callable[[int | None, RequestRow], None]
"""Called after each run with the limit of requests in flight and each row, in the order of their ends."""


def run_bench_serve(
    url: str,
    records: Sequence[PromptRecord],
    options: ServeBenchOptions,
    *,
    api_key: str | None = None,
    on_progress: Progress | None = None,
    on_row: OnRow | None = None,
) -> ServeReport:
    """Sends load to a server and returns what was measured.

    After an interrupt (SIGINT) during the load, the report holds what was done, and says so.

    Args:
        url: the server's root, or its root and `/v1`.
        records: the prompts, at least one.
        options: how requests are made and when they are sent.
        api_key: key to send as a bearer token; None for none.
        on_progress: called after each request.
        on_row: called for each request after the run that it belongs to.

    Raises:
        ConfigError: if the key cannot be sent.
        PromptError: if a prompt cannot go to the endpoint.
        ServerError: if the server cannot be reached, has not OpenAI's API, or refuses every request.
    """
    endpoint = choose_endpoint(records, options.endpoint)
    address = ServerAddress.parse(url)
    seed = secrets.randbits(32) if options.seed is None else options.seed

    async def work() -> ServeReport:
        async with ApiClient(address, api_key=api_key, timeout_s=options.timeout_s) as client:
            model = await _find_model(client, address.root, options.model)
            plan = RequestPlan(endpoint=endpoint, records=records, options=options, model=model)
            test = _LoadTest(client=client, api_key=api_key, plan=plan, seed=seed, on_progress=on_progress, on_row=on_row)
            await test.run()
            return ServeReport(
                environment=_environment(),
                server=address.root,
                model=model,
                endpoint=endpoint,
                settings=options.to_json() | {"requests": plan.num_requests, "arrival_seed": None if options.rate is None else seed},
                interrupted=test.interrupted,
                runs=tuple(test.reports),
            )

    return asyncio.run(work())


async def _find_model(client: ApiClient, root: str, given: str | None) -> str:
    """Returns the name to send. A given name need not be listed: some servers take any, and know aliases."""
    names = await client.models(needed=given is None)
    if given is not None:
        return given
    if not names:
        raise ServerError(
            f"{root}/v1/models lists no models", "check the URL: it is the server's root, or ends with /v1; or pass --model NAME"
        )
    return names[0]


@dataclass(kw_only=True)
class _LoadTest:
    """The runs of a test: one after the other, with the same requests."""

    client: ApiClient
    api_key: str | None
    plan: RequestPlan
    seed: int
    on_progress: Progress | None
    on_row: OnRow | None
    reports: list[LoadReport] = field(default_factory=list)
    interrupted: bool = False
    has_succeeded: bool = False

    async def run(self) -> None:
        """Runs all levels, or until an interrupt."""
        levels = self.plan.options.levels()
        await self._warm_up(levels[0] or 1)
        for concurrency in levels:
            try:
                await self._run_level(concurrency)
            except asyncio.CancelledError:  # between two runs
                if not self.reports:
                    raise
                self.interrupted = True
            if self.interrupted:
                return

    async def _warm_up(self, concurrency: int) -> None:
        options, rows = self.plan.options, list[RequestRow]()
        if options.warmup:
            origin = time.perf_counter()
            await closed_loop(
                lambda index, due: self._send(index, due, origin, rows, "warm-up", options.warmup), options.warmup, concurrency
            )

    async def _run_level(self, concurrency: int | None) -> None:
        rows: list[RequestRow] = []
        rate, total = self.plan.options.rate, self.plan.num_requests
        name = "" if concurrency is None else f"concurrency {concurrency}"
        before = await self.client.counters()
        cpu, origin = time.process_time(), time.perf_counter()

        async def send(index: int, due: float | None) -> None:
            await self._send(index, due, origin, rows, name, total)

        try:
            if rate is None:
                await closed_loop(send, total, concurrency or 1)
            else:
                await open_loop(send, arrival_times(rate, total, self.seed), concurrency)
        except asyncio.CancelledError:
            # asyncio.run turns Ctrl-C into this. A second one ends the process without a report.
            self.interrupted = True
        cpu_s = time.process_time() - cpu
        wall_s = max((row.start_s + row.latency_s for row in rows), default=0.0)
        after = None if before is None else await self._counters_after()
        measured = Measured(
            rate=rate, concurrency=concurrency, wall_s=wall_s, client_cpu_s=cpu_s, counters_before=before, counters_after=after
        )
        self.reports.append(summarize(rows, measured))
        for row in rows if self.on_row is not None else []:
            self.on_row(concurrency, row)  # type: ignore[misc]

    async def _counters_after(self) -> dict[str, float] | None:
        try:
            return await self.client.counters()
        except asyncio.CancelledError:  # the run itself is complete
            self.interrupted = True
            return None

    async def _send(self, index: int, due: float | None, origin: float, rows: list[RequestRow], name: str, total: int) -> None:
        """Sends one request and appends its row; raises ServerError if every request would be refused."""
        body, stream = self.plan.body(index), StreamRecorder(secret=self.api_key)
        status: Status = "cancelled"
        error: str | None = "interrupted"
        ended: float | None = None
        sent = time.perf_counter()
        try:
            ended = await self.client.complete(PATHS[self.plan.endpoint], body, stream)
            status, error, self.has_succeeded = "ok", None, True
        except RequestFailedError as err:
            status, error = "refused" if err.refused else "failed", err.reason
            if err.hopeless is not None and not self.has_succeeded:
                raise err.hopeless from err
        finally:
            timing = Timing(origin=origin, due=due, sent=sent, ended=time.perf_counter() if ended is None else ended)
            rows.append(make_row(id=self.plan.record(index).id, index=index, timing=timing, stream=stream, status=status, error=error))
        if self.on_progress is not None:
            self.on_progress(len(rows), total, name)


def _environment() -> dict[str, str | int]:
    return {
        "cpu": cpu_model(),
        "logical_cpus": logical_cpus(),
        "sstool": version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
