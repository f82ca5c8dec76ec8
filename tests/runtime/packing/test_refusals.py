"""Without a usable cache, weights are packed privately with a warning; mismatched graphs are refused."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import onnx
import pytest

from ssruntime import ArtifactError
from ssruntime.artifact import DRAFT_GRAPH, VERIFY_GRAPH
from ssruntime.backends.ort import packing
from ssruntime.engine import load
from tests.runtime.packing.entries import CONFIG, EXPECTED, LOAD_AND_REPORT, PROMPT, opened, run_child
from tests.runtime.scripted import refresh_file_entries

WITHOUT_DISK_CHECK: Final = """
import shutil
shutil.disk_usage = lambda _: type("Usage", (), {"free": 2**50})
"""


# Places where there can be no cache


def report_in(mount: str, folder: Path, artifact: Path, program: str) -> dict[str, object]:
    """Runs a program with its cache on a small file system of its own; skips where none can be mounted."""
    folder.mkdir()
    prefix = ("unshare", "--mount", "--map-root-user", "sh", "-c", f'mount -t tmpfs -o {mount} tmpfs "$0" && exec "$@"', str(folder))
    try:
        probe = subprocess.run([*prefix, "true"], check=False, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("this system has no unshare, to mount a small file system with")
    if probe.returncode:
        pytest.skip(f"a small file system cannot be mounted: {probe.stderr.strip()}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSTOOL_CACHE_DIR", str(folder))
        report: dict[str, object] = json.loads(run_child(program, artifact, prefix=prefix).stdout)
    return report


@pytest.mark.parametrize(
    ("mount", "program", "why"),
    [
        ("size=1m,mode=700", LOAD_AND_REPORT, "MiB free"),
        ("size=16k,mode=700", WITHOUT_DISK_CHECK + LOAD_AND_REPORT, ""),
        ("size=4k,mode=700", WITHOUT_DISK_CHECK + LOAD_AND_REPORT, ""),
        ("size=64m,mode=700,nr_inodes=3", LOAD_AND_REPORT, ""),
        ("size=64m,mode=700,ro", LOAD_AND_REPORT, "Read-only file system"),
    ],
)
def test_a_full_or_read_only_disk_means_one_warning_and_private_packing(
    tmp_path: Path, artifact: Path, mount: str, program: str, why: str
) -> None:
    report = report_in(mount, tmp_path / "small", artifact, program)
    assert report["tokens"] == EXPECTED
    assert str(report["packing"]).startswith("private (")
    assert why in str(report["packing"])
    warnings = report["warnings"]
    assert isinstance(warnings, list)
    (warning,) = warnings
    assert "packed privately" in warning
    assert "SSTOOL_CACHE_DIR" in warning
    assert "\n" not in warning


def assert_private(artifact: Path, caplog: pytest.LogCaptureFixture, why: str) -> None:
    assert opened(artifact) == f"private ({why})"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert why in record.getMessage()


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_can_write_is_not_used(cache: Path, artifact: Path, caplog: pytest.LogCaptureFixture, mode: int) -> None:
    cache.mkdir(parents=True)
    cache.chmod(mode)
    assert_private(artifact, caplog, f"{cache} belongs to or can be written by other users")
    assert list(cache.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(cache: Path, artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir(parents=True, mode=0o700)
    os.chown(cache, 12345, 12345)
    assert_private(artifact, caplog, f"{cache} belongs to or can be written by other users")


def test_a_folder_that_cannot_be_written_is_not_used(cache: Path, artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    if os.access(cache, os.W_OK):
        pytest.skip("this user may write into read-only folders")
    assert_private(artifact, caplog, "Permission denied")


def test_a_file_where_the_folder_should_be(cache: Path, artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.parent.mkdir(parents=True)
    cache.touch()
    assert_private(artifact, caplog, "File exists")


def test_an_entry_that_goes_away_before_it_is_mapped(
    cache: Path, artifact: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(artifact)
    read = packing._read

    def read_and_lose(folder: Path, *args: object, **settings: bool) -> object:
        entry = read(folder, *args, **settings)  # type: ignore[arg-type]
        packing._evict(folder)
        return entry

    monkeypatch.setattr(packing, "_read", read_and_lose)
    assert opened(artifact).startswith("private (")
    (record,) = caplog.records
    assert "packing privately" in record.getMessage()
    assert list(cache.iterdir()) == []


# Graphs that do not fit


def edit_draft(folder: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(folder / DRAFT_GRAPH, load_external_data=False)
    edit(model)
    (folder / DRAFT_GRAPH).write_bytes(model.SerializeToString())
    refresh_file_entries(folder)


def record_of(model: onnx.ModelProto, tensor: str, key: str) -> onnx.StringStringEntryProto:
    return next(e for t in model.graph.initializer if t.name == tensor for e in t.external_data if e.key == key)


def refused(folder: Path) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        load(folder, threads=1)
    assert caught.value.hint == "export the model again"
    return caught.value


def move(model: onnx.ModelProto) -> None:
    record_of(model, "identity", "offset").value = "0"


def rename(model: onnx.ModelProto) -> None:
    next(t for t in model.graph.initializer if t.name == "identity").name = "stranger"
    for node in model.graph.node:
        node.input[:] = ["stranger" if i == "identity" else i for i in node.input]


def reshape(model: onnx.ModelProto) -> None:
    next(t for t in model.graph.initializer if t.name == "table").dims[:] = [24, 240]


@pytest.mark.parametrize(("edit", "weight"), [(move, "identity"), (rename, "stranger"), (reshape, "table")])
@pytest.mark.usefixtures("cache")
def test_a_draft_whose_weights_are_not_the_verify_graphs_is_refused(
    artifact: Path, edit: Callable[[onnx.ModelProto], None], weight: str
) -> None:
    edit_draft(artifact, edit)
    assert f"draft.onnx: weight {weight!r} does not match a weight of the verify graph" in refused(artifact).message
    with load(artifact, threads=1, draft=False) as engine:
        assert engine.generate(PROMPT, CONFIG).token_ids == EXPECTED


@pytest.mark.usefixtures("cache")
def test_graphs_that_are_none_are_refused_by_name(artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in (DRAFT_GRAPH, VERIFY_GRAPH):
        (artifact / name).write_bytes(b"\x0b" + (artifact / name).read_bytes()[1:])
        refresh_file_entries(artifact)
        assert name in refused(artifact).message
    assert capfd.readouterr().out == ""
