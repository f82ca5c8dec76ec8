"""An artifact runs on the backend of its target, with the draft that is asked for, or is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from ssruntime import ArtifactError, BackendUnavailableError, ConfigError, GenerationConfig, SelfSpecError, load
from ssruntime.artifact import MANIFEST, WEIGHTS
from ssruntime.backends import registry
from ssruntime.backends.ort import sessions
from ssruntime.config import CheckpointDefaults, complete
from tests.runtime.scripted import OWN_WEIGHTS, edit_manifest, plain_tokens, random_script, refresh_file_entries, write_artifact

SCRIPT: Final = random_script(5, vocab=24, history=True, agreement=0.8)
CONFIG: Final = GenerationConfig(max_new_tokens=30, ignore_eos=True, temperature=0.0, exit="fixed", max_draft=4)
EXPECTED: Final = plain_tokens(SCRIPT, [3, 1, 2], complete(CONFIG, CheckpointDefaults(), None), 64)[0]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A scripted artifact, whose draft has a weights file of its own."""
    return write_artifact(tmp_path / "artifact", SCRIPT, own_draft_weights=True)


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return content


def refused(folder: Path, **how: Any) -> SelfSpecError:
    with pytest.raises(SelfSpecError) as caught:
        load(folder, **how)
    assert caught.value.hint
    return caught.value


def decoded(folder: Path, **how: Any) -> tuple[list[int], float, str]:
    with load(folder, threads=1, **how) as engine:
        done = engine.generate([3, 1, 2], CONFIG)
        return done.token_ids, done.stats.accepted / max(1, done.stats.proposed), engine.backend.packing


# Targets


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "ort-tpu"}, r"expected a target among ort-cpu.*, found 'ort-tpu'"),
        ({"dtype": "fp16"}, r"dtype: target ort-cpu runs fp32, int8, int4, found 'fp16'"),
        ({"kv": {"num_layers": 2, "kv_heads": 1, "head_dim": 1, "dtype": "int8"}}, r"kv: dtype: target ort-cpu runs fp32, found 'int8'"),
    ],
)
def test_what_this_runtime_cannot_run_is_refused_by_name(artifact: Path, changes: dict[str, object], message: str) -> None:
    edit_manifest(artifact, **changes)
    error = refused(artifact)
    assert isinstance(error, ArtifactError)
    assert error.message.startswith("manifest.json: ")
    with pytest.raises(ArtifactError, match=message):
        load(artifact)


def test_a_missing_package_is_named_with_the_command_that_installs_it(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    error = refused(artifact)
    assert isinstance(error, BackendUnavailableError)
    assert "target ort-cpu: onnxruntime cannot be imported" in error.message
    assert "pip install 'sstool[cpu]'" in error.hint


def test_every_target_s_module_offers_what_is_asked_of_it() -> None:
    for target in registry.TARGETS.values():
        module = target.load()
        for name in ("open_backend", "packing_state", "damaged_entry", "discard"):
            assert callable(getattr(module, name))


def test_an_older_schema_asks_for_a_new_export(artifact: Path) -> None:
    edit_manifest(artifact, schema_version=3)
    assert refused(artifact).hint.startswith("export the model again")


@pytest.mark.parametrize(("version", "inputs", "is_refused"), [("1.31.1", 16, True), ("1.31.1", 17, False), ("1.40.0", 0, False)])
def test_an_old_onnx_runtime_is_refused_with_the_version_that_is_needed(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, version: str, inputs: int, is_refused: bool
) -> None:
    schema = SimpleNamespace(name="GroupQueryAttention", inputs=[None] * inputs)
    monkeypatch.setattr(sessions.state, "get_all_operator_schema", lambda: [schema])
    monkeypatch.setattr(sessions.ort, "__version__", version)
    if not is_refused:
        sessions.require_query_lengths()
        return
    error = refused(artifact)
    assert isinstance(error, BackendUnavailableError)
    assert "needs ONNX Runtime 1.32 or newer, found 1.31.1" in error.message
    assert "sstool[cpu]" in error.hint


# Drafts


def test_a_draft_with_weights_of_its_own_shares_the_rest(artifact: Path) -> None:
    tokens, acceptance, packing = decoded(artifact)
    assert (tokens, packing) == (EXPECTED, "shared")
    assert acceptance > 0.1
    assert (acceptance, packing) == decoded(artifact)[1:]


def test_a_draft_s_own_weights_are_used_without_a_cache_too(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = decoded(artifact)
    monkeypatch.setenv("SSTOOL_CACHE_DIR", "/proc/none")
    private = decoded(artifact)
    assert private[:2] == shared[:2]
    assert private[2].startswith("private")


def test_other_weights_of_a_draft_take_the_place_of_the_old_ones(artifact: Path) -> None:
    before = decoded(artifact)
    content = (artifact / OWN_WEIGHTS).read_bytes()
    (artifact / OWN_WEIGHTS).write_bytes(bytes(len(content)))
    refresh_file_entries(artifact)
    after = decoded(artifact)
    assert after[0] == before[0]  # the target did not change
    assert after[1] < before[1]


def test_weights_that_are_links_are_followed(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = decoded(artifact)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name in (WEIGHTS, OWN_WEIGHTS):
        shutil.move(artifact / name, blobs / f"{name}.blob")
        (artifact / name).symlink_to(blobs / f"{name}.blob")
    assert decoded(artifact) == expected
    monkeypatch.setenv("SSTOOL_CACHE_DIR", "/proc/none")
    assert decoded(artifact)[:2] == expected[:2]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(blobs / f"{OWN_WEIGHTS}.blob", elsewhere / "own")
    (artifact / OWN_WEIGHTS).unlink()
    (artifact / OWN_WEIGHTS).symlink_to(elsewhere / "own")
    assert "links to different folders" in refused(artifact).message


def test_a_file_system_without_hard_links_gets_a_copy(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", no_links)
    assert decoded(artifact)[0] == EXPECTED
    assert decoded(artifact)[2] == "shared"


def test_a_draft_is_chosen_by_its_name(artifact: Path) -> None:
    first = manifest(artifact)["drafts"][0]
    second = {**first, "name": "short", "max_alternatives": 0, "stopping": {"exit": "fixed", "max_draft": 2}}
    edit_manifest(artifact, drafts=[first, second])
    for name, expected in ((True, None), ("draft", None), ("short", 2)):
        with load(artifact, threads=1, draft=name) as engine:
            stopping = engine.settings().stopping
            assert stopping.max_draft == (expected or stopping.max_draft)
            assert engine.settings().max_alternatives == (0 if expected else 2)
            assert engine.generate([3, 1, 2], CONFIG).token_ids == EXPECTED
    with pytest.raises(ConfigError, match="no draft 'long'") as caught:
        load(artifact, draft="long")
    assert "draft, short" in caught.value.hint
    edit_manifest(artifact, drafts=[first, first])
    assert "two drafts have the same name" in refused(artifact).message


def test_a_draft_s_missing_weights_are_named(artifact: Path) -> None:
    (artifact / OWN_WEIGHTS).unlink()
    assert "draft.bin is missing" in refused(artifact).message
    files = {name: entry for name, entry in manifest(artifact)["files"].items() if name != OWN_WEIGHTS}
    edit_manifest(artifact, files=files)
    assert "does not list draft.bin" in refused(artifact).message
