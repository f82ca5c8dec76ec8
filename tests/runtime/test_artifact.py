"""A damaged, missing or foreign artifact is refused before any engine opens, with its name and a hint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ssruntime import ArtifactError
from ssruntime.artifact import Manifest, check_digests, read_artifact
from ssruntime.engine import load
from ssruntime.strict_reader import read_record
from tests.runtime.scripted import edit_manifest, random_script, refresh_file_entries, write_artifact

FILES = ["draft.onnx", "generation_config.json", "step.onnx", "tokenizer.json", "verify.onnx", "weights.bin"]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "artifact", random_script(31))


def refused(folder: Path, message: str) -> ArtifactError:
    """Asserts that loading the folder fails with the message and a hint; returns the error."""
    with pytest.raises(ArtifactError, match=message) as caught:
        load(folder, threads=1)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_artifact_is_read_as_it_was_written(artifact: Path) -> None:
    read = read_artifact(artifact)
    assert sorted(read.manifest.files) == FILES
    assert read.path("verify.onnx") == artifact / "verify.onnx"
    reread = read_record(Manifest, json.loads(read.manifest.to_json()), where="reread", error=ArtifactError)
    assert reread == read.manifest
    assert read.manifest.to_json().endswith("}\n")
    assert read.manifest.kv.bytes_per_token() == 2 * 2 * 4
    check_digests(read)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    refused(artifact, f"{name} is missing from the artifact")
    (artifact / name).mkdir()
    refused(artifact, f"{name} is missing from the artifact")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_refused(artifact: Path, name: str, change: int) -> None:
    size = (artifact / name).stat().st_size
    os.truncate(artifact / name, size + change)
    refused(artifact, f"{name} has {size + change} bytes, but the manifest lists {size}")


def test_a_broken_link_is_refused(artifact: Path) -> None:
    (artifact / "weights.bin").unlink()
    (artifact / "weights.bin").symlink_to("nowhere")
    refused(artifact, "weights.bin is missing")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_digests_find_one_flipped_byte(artifact: Path, name: str, where: str) -> None:
    data = bytearray((artifact / name).read_bytes())
    at = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[where]
    data[at] ^= 1
    (artifact / name).write_bytes(data)
    checked: list[str] = []
    with pytest.raises(ArtifactError, match=f"{name} does not match its digest"):
        check_digests(read_artifact(artifact), on_file=checked.append)
    assert checked == FILES[: FILES.index(name) + 1]
    with pytest.raises(ArtifactError, match=f"{name} does not match its digest"):
        load(artifact, verify=True, threads=1)


def test_a_path_without_an_artifact_is_refused(tmp_path: Path) -> None:
    assert "sstool export" in refused(tmp_path / "none", "no artifact at").hint
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is a file, not an artifact's folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no manifest.json")


def test_a_model_folder_is_refused_with_a_hint_to_export_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert f"--model {tmp_path}" in refused(tmp_path, "is a model folder, not an artifact").hint


@pytest.mark.parametrize("keep", [0, 1, 10, 200, -2])
def test_a_truncated_manifest_is_refused(artifact: Path, keep: int) -> None:
    path = artifact / "manifest.json"
    path.write_text(path.read_text()[:keep])
    refused(artifact, "manifest.json cannot be read")


def test_a_manifest_that_is_nested_too_deeply_is_refused(artifact: Path) -> None:
    (artifact / "manifest.json").write_text("[" * 200_000)
    refused(artifact, "manifest.json cannot be read")


@pytest.mark.parametrize("text", ["[]", "null", "5", '"x"', "{}", '{"schema_version": null}'])
def test_a_manifest_without_a_schema_version_is_refused(artifact: Path, text: str) -> None:
    (artifact / "manifest.json").write_text(text)
    refused(artifact, "has schema version None, this sstool reads 8")


@pytest.mark.parametrize(
    ("stopping", "message"),
    [
        ({"exit": None}, "stopping: exit must be one of fixed, confidence, adaptive, optimal, found None"),
        ({"exit": "sometimes"}, "stopping: exit must be one of"),
        ({"exit": "fixed", "exit_threshold": 0.5}, "stopping: exit_threshold has no meaning with exit 'fixed'"),
        ({"exit": "confidence", "max_draft": 99}, "stopping: max_draft is out of range: 99"),
        ([], "stopping: expected an object with keys"),
    ],
)
def test_a_damaged_stopping_rule_is_refused(artifact: Path, stopping: object, message: str) -> None:
    drafts = json.loads((artifact / "manifest.json").read_text())["drafts"]
    edit_manifest(artifact, drafts=[{**drafts[0], "stopping": stopping}])
    refused(artifact, message)


@pytest.mark.parametrize(
    "calibration",
    [
        {"weights": [0.0] * 4, "log_odds": []},
        {"weights": [0.0] * 3, "log_odds": [1.0]},
        {"weights": [0.0] * 5, "log_odds": [1.0]},
        {"weights": [0.0] * 3 + [float("inf")], "log_odds": [1.0]},
        {"weights": [0.0] * 4, "log_odds": [float("nan")]},
    ],
)
def test_a_calibration_that_fits_no_model_is_refused(artifact: Path, calibration: object) -> None:
    drafts = json.loads((artifact / "manifest.json").read_text())["drafts"]
    edit_manifest(artifact, drafts=[{**drafts[0], "calibration": calibration}])
    refused(artifact, "calibration: expected 4 weights and at least one value of log_odds, all of them finite")


@pytest.mark.parametrize("version", [0, 1, 99, "2", [2]])
def test_another_schema_version_is_refused(artifact: Path, version: Any) -> None:
    edit_manifest(artifact, schema_version=version)
    assert "use the sstool that wrote it" in refused(artifact, "this sstool reads 8").hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_contxt": 5}, "unknown key 'max_contxt' .did you mean 'max_context'"),
        ({"max_context": "5"}, "max_context: expected int, found str '5'"),
        ({"model": {}}, "model: key 'source' is missing"),
        ({"drafts": [{"name": "x"}]}, r"drafts\[0\]: key 'graph' is missing"),
        ({"drafts": {}}, "drafts: expected a list"),
        ({"files": {}}, "does not list verify.onnx"),
        ({"files": {"verify.onnx": {"size": "5", "sha256": ""}}}, "files.verify.onnx: size: expected int"),
    ],
)
def test_a_manifest_with_wrong_keys_or_types_is_refused(artifact: Path, changes: dict[str, object], message: str) -> None:
    edit_manifest(artifact, **changes)
    refused(artifact, message)


@pytest.mark.parametrize("name", ["verify.onnx", "draft.onnx", "weights.bin"])
def test_a_file_that_the_manifest_does_not_list_is_refused(artifact: Path, name: str) -> None:
    files = json.loads((artifact / "manifest.json").read_text())["files"]
    del files[name]
    edit_manifest(artifact, files=files)
    refused(artifact, f"does not list {name}")


@pytest.mark.parametrize(
    "content", [b"", b"not a graph at all", b"\x3a\xff\xff\xff\xff\x0f", os.urandom(64)], ids=["empty", "text", "long", "noise"]
)
@pytest.mark.parametrize("name", ["verify.onnx", "draft.onnx"])
def test_a_file_that_is_not_a_graph_is_refused(artifact: Path, name: str, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (artifact / name).write_bytes(content)
    refresh_file_entries(artifact)
    refused(artifact, name)
    assert capfd.readouterr().out == ""


def test_a_graph_without_the_outputs_of_the_contract_is_refused(artifact: Path) -> None:
    import onnx

    model = onnx.load(artifact / "verify.onnx", load_external_data=False)
    kept = [o for o in model.graph.output if o.name != "confidence"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    (artifact / "verify.onnx").write_bytes(model.SerializeToString())
    refresh_file_entries(artifact)
    refused(artifact, "verify.onnx lacks the inputs or outputs confidence")


def test_a_draft_of_another_artifact_is_refused(artifact: Path, tmp_path: Path) -> None:
    other = write_artifact(tmp_path / "other", random_script(32, vocab=16))
    shutil.copy(other / "draft.onnx", artifact / "draft.onnx")
    refresh_file_entries(artifact)
    refused(artifact, "draft.onnx: weight '.*' does not match a weight of the verify graph")


def test_a_damaged_tokenizer_or_generation_config_is_refused(artifact: Path) -> None:
    (artifact / "tokenizer.json").write_text("{")
    refresh_file_entries(artifact)
    refused(artifact, "tokenizer.json cannot be read")
    (artifact / "generation_config.json").write_text("{")
    refresh_file_entries(artifact)
    refused(artifact, "generation_config.json cannot be read")


def test_files_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_artifact(tmp_path / "artifact", random_script(1))
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "weights.bin" and real(path, mode))
    with pytest.raises(ArtifactError, match=r"weights.bin cannot be read: Permission denied") as caught:
        read_artifact(folder)
    assert caught.value.hint == "check its permissions"
    monkeypatch.undo()
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    with pytest.raises(ArtifactError, match=r"manifest.json cannot be read: Is a directory") as caught:
        read_artifact(folder)
    assert "permissions" in (caught.value.hint or "")
