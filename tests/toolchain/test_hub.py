"""A model's name becomes a folder: paths, hub ids, and what is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssruntime.errors import CheckpointError
from sstool.hub import resolve


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "nowhere/", ""])
def test_a_path_that_does_not_exist_is_reported_as_a_missing_folder(name: str) -> None:
    with pytest.raises(CheckpointError, match="no model folder at"):
        resolve(name)


def test_a_missing_folder_in_an_existing_one_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no model folder at models/demo"):
        resolve("models/demo")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(tmp_path / "weights")


def test_a_revision_of_a_folder_is_refused(tiny_model: Path) -> None:
    with pytest.raises(CheckpointError, match="no revision 'main'"):
        resolve(tiny_model, "main")


@pytest.mark.parametrize("name", ["no-such-organization/no-such-model", "no-such-model"])
def test_a_hub_id_without_a_network_is_refused_with_a_hint_to_pass_a_folder(name: str) -> None:
    with pytest.raises(CheckpointError, match="no network, or offline mode") as caught:
        resolve(name)
    assert "--model PATH" in caught.value.hint


def test_an_invalid_hub_id_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not a valid hub id"):
        resolve("not a name!")


REPOSITORY_FILES = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors",
    "original/model.safetensors", "metal/model.safetensors", "checkpoint-500/model.safetensors", "checkpoint-500/config.json",
    "adapter_model.safetensors", "pytorch_model.bin", "README.md",
]  # fmt: skip


@pytest.mark.parametrize("has_index", [True, False])
def test_only_the_weights_that_the_index_names_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_index: bool) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    folder = tmp_path / "0123abcd"
    folder.mkdir()
    own = {name for name in REPOSITORY_FILES if name.startswith("model-")} if has_index else {"model.safetensors"}
    if has_index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(own)}}))
    files = [*REPOSITORY_FILES, "model.safetensors"] if not has_index else REPOSITORY_FILES
    asked: list[tuple[str | None, set[str]]] = []

    def snapshot_download(_name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((revision, set(filter_repo_objects(files, allow_patterns=allow_patterns))))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("someone/model", "main").revision == "0123abcd"
    assert [revision for revision, _ in asked] == ["main", "0123abcd"]
    assert not {name for name in asked[0][1] if name.endswith((".safetensors", ".bin"))}
    assert asked[1][1] == own
