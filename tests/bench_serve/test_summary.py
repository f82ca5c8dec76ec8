"""The figures of a run follow from its requests, and only from those that succeeded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sstool.bench_serve.acceptance import Speculation
from sstool.bench_serve.report import Distribution
from sstool.bench_serve.rows import RequestRow
from sstool.bench_serve.summary import Measured, summarize

ROW = RequestRow(
    id="a",
    index=0,
    start_s=0.0,
    wait_s=None,
    ttft_s=0.1,
    itl_s=0.02,
    chunk_gaps_s=(0.05, 0.07),
    latency_s=1.0,
    prompt_tokens=4,
    tokens=10,
    tokens_are_chunks=False,
    finish_reason="stop",
    status="ok",
    error=None,
    text_sha256="",
    speculation=None,
)
MEASURED = Measured(rate=None, concurrency=2, wall_s=4.0, client_cpu_s=0.5, counters_before=None, counters_after=None)
BEFORE = {"num_drafts": 0.0, "num_draft_tokens": 0.0, "num_accepted_tokens": 0.0}
AFTER = {"num_drafts": 10.0, "num_draft_tokens": 40.0, "num_accepted_tokens": 30.0}


def rows(*changes: dict[str, Any]) -> list[RequestRow]:
    return [dataclasses.replace(ROW, index=index, **change) for index, change in enumerate(changes)]


def test_percentiles_are_interpolated() -> None:
    found = Distribution.of([float(value) for value in range(101)])
    assert found == Distribution(mean=50.0, p50=50.0, p90=90.0, p99=99.0)
    assert Distribution.of([1.0, 2.0]) == Distribution(mean=1.5, p50=1.5, p90=pytest.approx(1.9), p99=pytest.approx(1.99))
    assert Distribution.of([]) is None


def test_throughput_and_times_are_of_requests_that_succeeded() -> None:
    failed = {"status": "failed", "error": "HTTP 500", "ttft_s": 9.0, "tokens": 1000, "latency_s": 99.0}
    report = summarize(rows({}, {"ttft_s": 0.3, "tokens": 20, "itl_s": 0.04, "chunk_gaps_s": (0.09,)}, failed), MEASURED)
    assert (report.ok, report.refused, report.failed, report.cancelled) == (2, 0, 1, 0)
    assert (report.output_tokens, report.output_tokens_per_second, report.requests_per_second) == (30, 7.5, 0.5)
    assert report.prompt_tokens == 8
    assert report.ttft_s is not None
    assert report.ttft_s.mean == pytest.approx(0.2)
    assert report.itl_s is not None
    assert report.itl_s.p50 == pytest.approx(0.03)
    assert report.chunk_gap_s is not None
    assert report.chunk_gap_s.mean == pytest.approx(0.07)
    assert report.latency_s == Distribution(mean=1.0, p50=1.0, p90=1.0, p99=1.0)
    assert (report.wait_s, report.client_cpu_s, report.concurrency) == (None, 0.5, 2)
    assert report.finish_reasons == {"stop": 2}


def test_failures_are_counted_by_reason() -> None:
    refused = {"status": "refused", "error": "HTTP 429"}
    lost = {"status": "failed", "error": "connection lost"}
    report = summarize(rows(refused, lost, refused, {"status": "cancelled", "error": "interrupted"}), MEASURED)
    assert (report.refused, report.failed, report.cancelled) == (2, 1, 1)
    assert report.failures == {"HTTP 429": 2, "connection lost": 1}
    assert (report.ttft_s, report.token_counts, report.prompt_tokens, report.output_tokens_per_second) == (None, None, None, 0.0)


def test_many_reasons_are_counted_together() -> None:
    report = summarize(rows(*({"status": "failed", "error": f"reason {at}"} for at in range(50))), MEASURED)
    assert len(report.failures) == 21
    assert report.failures["other reasons"] == 30


@pytest.mark.parametrize(("kinds", "expected"), [((False, False), "usage"), ((True, True), "chunks"), ((True, False), "mixed")])
def test_the_report_says_how_tokens_were_counted(kinds: tuple[bool, ...], expected: str) -> None:
    assert summarize(rows(*({"tokens_are_chunks": kind} for kind in kinds)), MEASURED).token_counts == expected


def test_responses_come_before_counters() -> None:
    measured = dataclasses.replace(MEASURED, counters_before=BEFORE, counters_after=AFTER)
    said = {"speculation": Speculation(num_drafts=2, num_draft_tokens=4, num_accepted=1)}
    from_responses = summarize(rows(said, {}), measured).acceptance
    from_counters = summarize(rows({}, {}), measured).acceptance
    assert from_responses is not None
    assert (from_responses.source, from_responses.draft_acceptance_rate) == ("responses", 0.25)
    assert from_counters is not None
    assert (from_counters.source, from_counters.draft_acceptance_rate, from_counters.mean_acceptance_length) == ("metrics", 0.75, 4.0)
    assert summarize(rows({}), MEASURED).acceptance is None


def test_no_time_is_no_throughput() -> None:
    report = summarize([], dataclasses.replace(MEASURED, wall_s=0.0))
    assert (report.output_tokens_per_second, report.requests_per_second) == (0.0, 0.0)
