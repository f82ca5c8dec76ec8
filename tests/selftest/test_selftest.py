"""The self-test proves what this machine can prove, says what it cannot, and does not hide a failure."""

from __future__ import annotations

import dataclasses
import html
import json
from pathlib import Path

import pytest

from ssruntime.artifact import Artifact
from ssruntime.errors import ArtifactError
from sstool.cli.main import run as run_command
from sstool.selftest import exactness, models, speed
from sstool.selftest.page import render, write_pages
from sstool.selftest.rows import FAILED, NOT_HERE, PROVEN, Row, Rows, SelfTestReport
from sstool.selftest.run import SelfTestOptions, run_selftest
from sstool.targets.registry import GRAPH_TARGETS


@pytest.fixture(autouse=True)
def few_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test runs with one family, and with a smaller model for speed."""
    monkeypatch.setattr("sstool.selftest.run.FAMILIES", {"gemma2": {}})
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 512}
    monkeypatch.setitem(
        models.SHAPES, "llama-60m", dataclasses.replace(models.SHAPES["llama-60m"], settings=small, attention=(1,), mlp=(2,))
    )


def test_every_target_has_rows_here() -> None:
    said: list[str] = []
    report = run_selftest(SelfTestOptions(progress=said.append))
    assert report.ok, report
    assert {row.target for row in report.rows} == set(GRAPH_TARGETS)
    assert "ort-cpu: gemma2" in said
    states = {(row.target, row.check): row.state for row in report.rows}
    assert states["ort-cpu", "gemma2: equal bits of all passes"] == PROVEN
    assert states["ort-cpu", "gemma2: sampled text"] == PROVEN
    assert states["ort-cpu", "a Llama of 60 M parameters: plain step"] == PROVEN
    if report.environment["gpu"] is None:
        assert states["ort-cuda", "gemma2: parity (graphs on the processor)"] == PROVEN
        assert states["tensorrt", "gemma2: greedy text (graphs on the processor)"] == PROVEN
        absent = [row for row in report.rows if row.state == NOT_HERE]
        assert {row.target for row in absent} == {"ort-cuda", "tensorrt"}
        assert all(row.why and row.figure is None for row in absent)


def test_a_wrong_graph_fails_and_the_other_checks_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    real = exactness.compare_with_reference

    def wrong(*arguments: object) -> object:
        return dataclasses.replace(real(*arguments), max_relative=0.5)  # type: ignore[arg-type]

    monkeypatch.setattr(exactness, "compare_with_reference", wrong)
    report = run_selftest(SelfTestOptions(targets=("ort-cpu",), shape="none"))
    states = {row.check: row.state for row in report.rows}
    assert states["gemma2: parity"] == FAILED
    assert states["gemma2: greedy text"] == PROVEN
    assert not report.ok


def test_an_error_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Artifact:
        raise RuntimeError("a driver\nfailed")

    monkeypatch.setattr(exactness, "write_artifact", broken)
    (row,) = run_selftest(SelfTestOptions(targets=("ort-cpu",), shape="none")).rows
    assert (row.state, row.check, row.why) == (FAILED, "gemma2: parity", "RuntimeError: a driver failed")


def test_bars_are_for_gpus() -> None:
    for has_bars, state in ((True, FAILED), (False, PROVEN)):
        rows = Rows("ort-cuda")
        speed._Judge(rows, "a model", has_bars).add("plain step", "12 %", holds=False, bar="70 %")
        assert rows.found[0].state == state
        assert rows.found[0].bar == ("70 %" if has_bars else None)


REPORT = SelfTestReport(
    environment={"cpu": "a <processor>", "gpu": None, "memory_gb": 8.0},
    rows=(
        Row(target="ort-cpu", check="parity", state=PROVEN, figure="1e-6", bar="1e-4"),
        Row(target="tensorrt", check="a <check>", state=NOT_HERE, why="no GPU & no driver"),
    ),
    seconds=3.2,
)


def test_pages_hold_every_row_and_run_no_text_as_code(tmp_path: Path) -> None:
    write_pages(REPORT, tmp_path / "new" / "folder")
    assert json.loads((tmp_path / "new" / "folder" / "selftest.json").read_text()) == json.loads(json.dumps(REPORT.to_json()))
    page = (tmp_path / "new" / "folder" / "selftest.html").read_text()
    assert page == render(REPORT)
    for text in ("a <processor>", "a <check>", "no GPU & no driver"):
        assert html.escape(text) in page
        assert text not in page
    assert "http://" not in page
    assert "https://" not in page
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_pages(REPORT, tmp_path / "file" / "folder")


def test_the_command_prints_rows_or_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_command(["selftest", "--target", "ort-cpu", "--shape", "none", "--json", "--out", str(tmp_path / "out")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"environment", "rows", "seconds"}
    assert set(printed["rows"][0]) == {"target", "check", "state", "figure", "bar", "why"}
    assert json.loads((tmp_path / "out" / "selftest.json").read_text()) == printed
    assert run_command(["selftest", "--target", "tensorrt", "--shape", "none"]) == 0
    assert "gemma2: parity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"), [(["--target", "tpu"], "target"), (["--shape", "large"], "shape"), (["--device", "-1"], "device")]
)
def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert run_command(["selftest", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
