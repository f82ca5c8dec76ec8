"""Summarises the requests of one run: counts, throughput, distributions of times, acceptance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sstool.bench_serve.acceptance import Acceptance, difference, sum_responses
from sstool.bench_serve.report import Distribution, LoadReport, TokenCounts
from sstool.bench_serve.rows import RequestRow

_MAX_REASONS: Final = 20
"""Most reasons of failures that are counted apart."""
_OTHERS: Final = "other reasons"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What is known of a run besides its requests.

    Attributes:
        rate: mean arrivals per second; None in a closed loop.
        concurrency: most requests in flight; None for no limit.
        wall_s: seconds from the first request to the end of the last.
        client_cpu_s: processor seconds of this process in that time.
        counters_before: the server's counters of speculative decoding before the run; None if it has none.
        counters_after: the same after the run.
    """

    rate: float | None
    concurrency: int | None
    wall_s: float
    client_cpu_s: float
    counters_before: Mapping[str, float] | None
    counters_after: Mapping[str, float] | None


def summarize(rows: Sequence[RequestRow], measured: Measured) -> LoadReport:
    """Returns the report of one run from all its requests."""
    ok = [row for row in rows if row.status == "ok"]
    prompt_tokens = [row.prompt_tokens for row in ok if row.prompt_tokens is not None]
    output_tokens = sum(row.tokens for row in ok)
    return LoadReport(
        rate=measured.rate,
        concurrency=measured.concurrency,
        ok=len(ok),
        refused=sum(row.status == "refused" for row in rows),
        failed=sum(row.status == "failed" for row in rows),
        cancelled=sum(row.status == "cancelled" for row in rows),
        failures=_count_failures(rows),
        wall_s=measured.wall_s,
        requests_per_second=_per_second(len(ok), measured.wall_s),
        output_tokens=output_tokens,
        output_tokens_per_second=_per_second(output_tokens, measured.wall_s),
        prompt_tokens=sum(prompt_tokens) if ok and len(prompt_tokens) == len(ok) else None,
        token_counts=_token_counts(ok),
        finish_reasons=dict(Counter(row.finish_reason or "not given" for row in ok).most_common()),
        ttft_s=Distribution.of([row.ttft_s for row in ok if row.ttft_s is not None]),
        itl_s=Distribution.of([row.itl_s for row in ok if row.itl_s is not None]),
        chunk_gap_s=Distribution.of([gap for row in ok for gap in row.chunk_gaps_s]),
        latency_s=Distribution.of([row.latency_s for row in ok]),
        wait_s=Distribution.of([row.wait_s for row in ok if row.wait_s is not None]),
        acceptance=_acceptance(ok, measured),
        client_cpu_s=measured.client_cpu_s,
    )


def _acceptance(ok: Sequence[RequestRow], measured: Measured) -> Acceptance | None:
    said = [row.speculation for row in ok if row.speculation is not None]
    return sum_responses(said) if said else difference(measured.counters_before, measured.counters_after)


def _count_failures(rows: Sequence[RequestRow]) -> dict[str, int]:
    counts = Counter(row.error or row.status for row in rows if row.status in ("refused", "failed")).most_common()
    others = sum(number for _, number in counts[_MAX_REASONS:])
    return dict(counts[:_MAX_REASONS]) | ({_OTHERS: others} if others else {})


def _token_counts(ok: Sequence[RequestRow]) -> TokenCounts | None:
    kinds = {row.tokens_are_chunks for row in ok}
    if len(kinds) != 1:
        return "mixed" if kinds else None
    return "chunks" if kinds == {True} else "usage"


def _per_second(number: int, seconds: float) -> float:
    return number / seconds if seconds > 0 else 0.0
