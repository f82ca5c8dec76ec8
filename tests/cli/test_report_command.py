"""`sstool report`: it finds the search in a folder or an artifact, and refuses a folder without one."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Command
from tests.search_report import searches


def test_the_report_of_an_artifact_is_written_to_its_search_folder(sstool: Command, tmp_path: Path) -> None:
    folder = searches.write_search(tmp_path / "artifact" / "search", searches.finished(count=20), searches.latency())
    outcome = sstool("report", tmp_path / "artifact")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{folder / 'report.html'}\n", "")
    assert (folder / "report.html").read_bytes().startswith(b"<!DOCTYPE html>")


def test_the_report_of_an_unfinished_search_is_written_to_its_folder(sstool: Command, tmp_path: Path) -> None:
    folder = searches.write_search(tmp_path / "out.search", searches.finished(count=20)[:9])
    outcome = sstool("report", folder)
    assert (outcome.code, outcome.out) == (0, f"{folder / 'report.html'}\n")


def test_a_folder_without_a_search_is_an_error_with_a_hint(sstool: Command, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        outcome = sstool("report", folder)
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err.startswith("error: ")
        assert "hint: name the folder of an artifact" in outcome.err


def test_the_error_names_a_damaged_line(sstool: Command, tmp_path: Path) -> None:
    folder = searches.write_search(tmp_path, searches.finished(count=20))
    with (folder / "trials.jsonl").open("a", encoding="utf-8") as file:
        file.write("{}\n")
    outcome = sstool("report", folder)
    assert outcome.code == 1
    assert "trials.jsonl, line 28: unknown kind None" in outcome.err
    assert not (folder / "report.html").exists()
