"""An entry of the packed-weights cache is made once, found by its key, and replaced when it is damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from ssruntime.artifact import VERIFY_GRAPH, WEIGHTS, read_artifact
from ssruntime.backends.ort import packing
from ssruntime.engine import load
from ssruntime.errors import ArtifactError
from tests.runtime.packing.entries import (
    DAMAGE,
    EXPECTED,
    LOAD_AND_REPORT,
    SCRIPT,
    WITNESS,
    entries,
    flipped,
    keep_times,
    only_entry,
    opened,
    run_child,
)
from tests.runtime.scripted import random_script, refresh_file_entries, write_artifact

# One entry, made once


def test_the_second_load_uses_what_the_first_made(cache: Path, artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert opened(artifact) == "shared"
    assert cache.stat().st_mode & 0o777 == 0o700
    entry = only_entry(cache)
    (entry / WITNESS).touch()
    assert opened(artifact) == "shared"
    assert opened(artifact, verify=True) == "shared"
    assert (only_entry(cache) / WITNESS).exists()
    assert not caplog.records


def test_another_process_and_a_copy_of_the_artifact_use_it_too(cache: Path, artifact: Path, tmp_path: Path) -> None:
    opened(artifact)
    (only_entry(cache) / WITNESS).touch()
    copy = write_artifact(tmp_path / "copy", SCRIPT, name="another name")
    assert json.loads(run_child(LOAD_AND_REPORT, copy).stdout) == {"packing": "shared", "tokens": EXPECTED, "warnings": []}
    assert (only_entry(cache) / WITNESS).exists()


def test_the_packed_file_holds_every_weight_of_the_graphs(cache: Path, artifact: Path) -> None:
    opened(artifact)
    packed = onnx.load(only_entry(cache) / "packed.onnx", load_external_data=False)
    outside = {t.name: {e.key: e.value for e in t.external_data} for t in packed.graph.initializer if t.external_data}
    assert {"table", "identity"} <= outside.keys()
    assert any(k.startswith("prepacked") for k in outside["identity"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SSTOOL_CACHE_DIR": "/named", "XDG_CACHE_HOME": "/xdg"}, "/named"),
        ({"SSTOOL_CACHE_DIR": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/sstool"),
        ({"SSTOOL_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": "/house"}, "/house/.cache/sstool"),
    ],
)
def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], expected: str) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    assert packing.cache_folder() == Path(expected)


def test_a_relative_cache_folder_is_taken_from_where_the_process_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSTOOL_CACHE_DIR", "here")
    assert packing.cache_folder() == tmp_path / "here"


# Keys


def test_the_key_is_that_of_the_host_and_the_digests(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = packing._key(packing._source(read_artifact(artifact)))
    assert packing._key(packing._source(read_artifact(artifact))) == original
    assert (
        packing._key(packing._source(read_artifact(write_artifact(tmp_path / "other", random_script(6, vocab=24, history=True)))))
        != original
    )
    keys = {original}
    for target, value in {f"{packing.__name__}.ort.__version__": "9.9", f"{packing.__name__}.cpu_features": lambda: "abacus"}.items():
        with monkeypatch.context() as patch:
            patch.setattr(target, value)
            keys.add(packing._key(packing._source(read_artifact(artifact))))
    model = onnx.load(artifact / VERIFY_GRAPH, load_external_data=False)
    model.doc_string = "changed"
    (artifact / VERIFY_GRAPH).write_bytes(model.SerializeToString())
    refresh_file_entries(artifact)
    keys.add(packing._key(packing._source(read_artifact(artifact))))
    assert len(keys) == 4


def test_another_onnxruntime_makes_another_entry(cache: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(artifact)
    monkeypatch.setattr(ort, "__version__", "9.9.9")
    assert opened(artifact) == "shared"
    assert len(entries(cache)) == 2


# Damage


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(cache: Path, artifact: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    opened(artifact)
    (only_entry(cache) / WITNESS).touch()
    DAMAGE[damage](only_entry(cache))
    assert opened(artifact) == "shared"
    assert not (only_entry(cache) / WITNESS).exists()
    assert opened(artifact, verify=True) == "shared"
    assert not caplog.records


def test_a_file_in_the_place_of_the_entry_is_replaced(cache: Path, artifact: Path) -> None:
    opened(artifact)
    entry = only_entry(cache)
    packing.discard(read_artifact(artifact))
    entry.write_text("what is this?")
    assert opened(artifact) == "shared"
    assert (cache / entry.name / "packed.bin").exists()


def test_a_flipped_byte_is_found_when_verifying(cache: Path, artifact: Path) -> None:
    opened(artifact)
    entry = only_entry(cache)
    (entry / WITNESS).touch()
    keep_times(entry / "packed.bin", flipped)
    with load(artifact, threads=1):  # not hashed, so not found: that is what `verify` is for
        assert (only_entry(cache) / WITNESS).exists()
    assert opened(artifact, verify=True) == "shared"
    assert not (only_entry(cache) / WITNESS).exists()


def test_damaged_weights_are_never_packed(cache: Path, artifact: Path) -> None:
    keep_times(artifact / WEIGHTS, flipped)
    with pytest.raises(ArtifactError, match=r"weights\.bin does not match its digest in the manifest"):
        load(artifact, threads=1)
    assert not list(cache.glob("[!.]*/packed.bin"))
    keep_times(artifact / WEIGHTS, flipped)  # repaired
    assert opened(artifact) == "shared"


def test_a_copied_cache_serves_though_it_keeps_whole_seconds_only(
    cache: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(artifact)
    copy = tmp_path / "copied"
    shutil.copytree(cache, copy)
    copy.chmod(0o700)
    for path in copy.rglob("*"):
        seconds = path.stat().st_mtime_ns // 10**9
        os.utime(path, (seconds, seconds))
    (only_entry(copy) / WITNESS).touch()
    monkeypatch.setenv("SSTOOL_CACHE_DIR", str(copy))
    assert opened(artifact) == "shared"
    assert (only_entry(copy) / WITNESS).exists()


@pytest.mark.parametrize("shares", [True, False])
def test_an_artifact_of_links_loads_like_one_of_files(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool
) -> None:
    """A model hub's cache, and tools that keep large files elsewhere, put links into the folder."""
    blobs, linked = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    linked.mkdir(parents=True)
    for number, path in enumerate(sorted(artifact.iterdir())):
        shutil.copy(path, blobs / f"blob{number}")
        (linked / path.name).symlink_to(f"../../blobs/blob{number}")
    if not shares:
        monkeypatch.setenv("SSTOOL_CACHE_DIR", "/proc/none")
    assert opened(linked).startswith("shared" if shares else "private (")


def test_a_cache_whose_name_is_not_utf_8_only_prevents_sharing(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SSTOOL_CACHE_DIR", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert opened(artifact).startswith("private (the cache's folder has a name that is not UTF-8")
    assert len(caplog.records) == 1
