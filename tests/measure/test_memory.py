"""Memory is measured in fresh processes, and judged by the bars only if the weights are large enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from ssruntime import BackendUnavailableError
from ssruntime.artifact import WEIGHTS
from sstool.check import CheckOptions, run_check
from sstool.check.memory import MemoryReport, can_measure, measure_memory
from tests.measure.conftest import Script, successor_table

MakeArtifact = Callable[[Script], Path]

needs_pss = pytest.mark.skipif(not can_measure(), reason="this system does not report the PSS of a process")

REPORT = MemoryReport(
    weights_bytes=300_000_000,
    draft_bytes=10_000_000,
    draft_bar_bytes=10_000_000,
    second_process_bytes=46_000_000,
    second_process_bar_bytes=46_000_000,
    packing="shared",
    judged=True,
    readings={},
)


@needs_pss
def test_a_small_artifact_is_measured_and_not_judged(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(Script(verify=successor_table(), draft=successor_table()))
    report = measure_memory(folder, threads=1)
    size = (folder / WEIGHTS).stat().st_size
    assert report.weights_bytes == size
    assert report.draft_bar_bytes == int(0.02 * size) + 4_000_000
    assert report.second_process_bar_bytes == int(0.10 * size) + 16_000_000
    assert not report.judged
    assert report.ok
    assert set(report.readings) == {
        "engine_alone", "engine_beside_no_engine", "no_engine", "engine_beside_second", "second_engine", "engine_without_draft",
    }  # fmt: skip
    assert all(reading > 1_000_000 for reading in report.readings.values())
    assert report.draft_bytes == report.readings["engine_alone"] - report.readings["engine_without_draft"]


@needs_pss
def test_a_check_reports_memory(make_artifact: MakeArtifact) -> None:
    report = run_check(make_artifact(Script(verify=successor_table(), draft=None)), CheckOptions(threads=1))
    assert report.memory.status == "reported"
    assert report.memory.details["draft_bytes"] is None


@needs_pss
def test_a_failed_process_is_an_error_with_its_message(make_artifact: MakeArtifact) -> None:
    folder = make_artifact(Script(verify=successor_table(), draft=successor_table()))
    with pytest.raises(BackendUnavailableError, match="max_context"):
        measure_memory(folder, threads=1, max_context=10**6)


@pytest.mark.parametrize(
    ("change", "ok"),
    [({}, True), ({"draft_bytes": 10_000_001}, False), ({"second_process_bytes": 46_000_001}, False), ({"draft_bytes": None}, True)],
)
def test_a_judged_report_is_ok_only_within_both_bars(change: dict[str, int | None], ok: bool) -> None:
    report = dataclasses.replace(REPORT, **change)  # type: ignore[arg-type]
    assert report.ok is ok
    assert dataclasses.replace(report, judged=False).ok
