"""The result of a load test as typed records, and as the JSON object that `bench-serve --json` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from sstool.bench_serve.acceptance import Acceptance
from sstool.bench_serve.options import Endpoint

TokenCounts = Literal["usage", "chunks", "mixed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """The mean and three percentiles of measurements, interpolated linearly between neighbours."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution | None:
        """Returns the distribution of `values`; None if there are none."""
        if not values:
            return None
        p50, p90, p99 = np.percentile(values, [50, 90, 99]).tolist()
        return cls(mean=float(np.mean(values)), p50=p50, p90=p90, p99=p99)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """One run: the same requests at one concurrency and rate. Only requests that succeeded count as output.

    There is no confidence interval of the throughput: requests that run at the same time slow each other
    down, so they are not independent samples. Repeat the command to see how much it varies.

    Attributes:
        rate: mean arrivals per second; None in a closed loop.
        concurrency: most requests in flight; None for no limit.
        ok: number of requests that succeeded.
        refused: number of requests that the server refused because it was busy (status 429).
        failed: number of requests that failed otherwise.
        cancelled: number of requests in flight when the user interrupted the run.
        failures: number of refused and failed requests by reason, the most frequent first.
        wall_s: seconds from the first request to the end of the last.
        requests_per_second: ok / wall_s.
        output_tokens: tokens of all outputs.
        output_tokens_per_second: output_tokens / wall_s.
        prompt_tokens: tokens of all prompts; None if the server does not say it for each.
        token_counts: `usage` if the server counted the tokens, `chunks` if chunks with text are counted
            instead, `mixed` if some requests had no usage; None if no request succeeded.
        finish_reasons: number of outputs by the reason of their ends.
        ttft_s: time to first token: from sending to the first chunk with text.
        itl_s: inter-token latency, one value per request: (last token - first token) / (tokens - 1).
        chunk_gap_s: time between chunks with text, of all requests together. A chunk may hold several tokens.
        latency_s: from sending to the end of the stream.
        wait_s: from a request's arrival to its sending; None in a closed loop. It is in no other figure.
        acceptance: draft tokens proposed and accepted; None if the server says nothing about them.
        client_cpu_s: processor seconds that this tool used. Close to `wall_s` it limits what it measures.
    """

    rate: float | None
    concurrency: int | None
    ok: int
    refused: int
    failed: int
    cancelled: int
    failures: Mapping[str, int]
    wall_s: float
    requests_per_second: float
    output_tokens: int
    output_tokens_per_second: float
    prompt_tokens: int | None
    token_counts: TokenCounts | None
    finish_reasons: Mapping[str, int]
    ttft_s: Distribution | None
    itl_s: Distribution | None
    chunk_gap_s: Distribution | None
    latency_s: Distribution | None
    wait_s: Distribution | None
    acceptance: Acceptance | None
    client_cpu_s: float


@dataclass(frozen=True, kw_only=True)
class ServeReport:
    """The whole result of `sstool bench-serve`.

    Attributes:
        environment: the machine that sent the requests, and versions.
        server: the server's root.
        model: name of the model.
        endpoint: `completions` or `chat`.
        settings: the options as JSON values, with the seed of the arrivals.
        interrupted: whether the user ended the test early; the last run then holds what was done.
        runs: one report per concurrency, in order.
    """

    environment: Mapping[str, str | int]
    server: str
    model: str
    endpoint: Endpoint
    settings: Mapping[str, object]
    interrupted: bool
    runs: tuple[LoadReport, ...]

    @property
    def num_ok(self) -> int:
        """The number of requests that succeeded, of all runs."""
        return sum(run.ok for run in self.runs)

    def to_json(self) -> dict[str, object]:
        """Returns the object that `bench-serve --json` prints; times in seconds."""
        return {
            "environment": dict(self.environment),
            "server": self.server,
            "model": self.model,
            "endpoint": self.endpoint,
            "settings": dict(self.settings),
            "interrupted": self.interrupted,
            "runs": [asdict(run) for run in self.runs],
        }
