"""Folders that people mistake for checkpoints are named for what they are, with a hint at what to pass."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ssruntime.errors import CheckpointError, UnsupportedModelError
from sstool.checkpoint.describe import describe_checkpoint
from tests.toolchain.tiny_llama import edit_json


def move_into(name: str) -> Callable[[Path], None]:
    """Returns a function that moves a checkpoint's files into a subfolder."""

    def move(folder: Path) -> None:
        (folder / name).mkdir(parents=True)
        for path in [p for p in folder.iterdir() if p.is_file()]:
            path.rename(folder / name / path.name)

    return move


def only(*names: str) -> Callable[[Path], None]:
    """Returns a function that replaces a checkpoint's files by others."""

    def replace(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name in names:
            (folder / name).write_text("{}", encoding="utf-8")

    return replace


def add(name: str) -> Callable[[Path], None]:
    """Returns a function that adds a JSON file to a checkpoint."""
    return lambda folder: (folder / name).write_text("{}") and None


def pointer(name: str) -> Callable[[Path], None]:
    """Returns a function that puts a Git LFS pointer in a file's place."""
    return lambda folder: (folder / name).write_text("version https://git-lfs.example/spec/v1\noid sha256:00\nsize 9\n") and None


MISTAKEN: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "an adapter": (only("adapter_config.json", "adapter_model.safetensors"), "is a PEFT adapter, not a model", "merge_and_unload"),
    "an adapter beside a model": (
        lambda f: (f / "adapter_config.json").write_text("{}") and None,
        "which an export would leave out",
        "move adapter_config.json away",
    ),
    "a folder of the hub cache": (move_into("snapshots/abc"), "hub cache", "snapshots/abc"),
    "a training's output": (move_into("checkpoint-70"), "the output of a training", "pass .*checkpoint-70"),
    "a folder of models": (move_into("some-model"), "a folder of model folders", "pass .*some-model"),
    "gguf": (only("model-Q4_K_M.gguf"), "is a GGUF model", "safetensors checkpoint"),
    "onnx": (only("model.onnx"), "is an ONNX model", "safetensors checkpoint"),
    "genai": (only("genai_config.json", "model.onnx"), "is an onnxruntime-genai model", "safetensors checkpoint"),
    "diffusers": (only("model_index.json"), "a diffusion pipeline", "decoder"),
    "distributed": (only("__0_0.distcp"), "a distributed training checkpoint", "save_pretrained"),
    "original weights": (only("params.json", "consolidated.00.pth"), "in its maker's own format", "transformers format"),
    "only a tokenizer": (only("tokenizer.json", "tokenizer_config.json"), "is a tokenizer without a model", "config.json and the weights"),
    "a pointer to weights": (pointer("model.safetensors"), "model.safetensors is a Git LFS pointer", "git lfs pull"),
    "a pointer to a tokenizer": (pointer("tokenizer.json"), "tokenizer.json is a Git LFS pointer", "git lfs pull"),
    "mlx": (lambda f: edit_json(f / "config.json", quantization={"bits": 4}), "is quantized", "quantized from"),
}


@pytest.mark.parametrize("case", MISTAKEN)
def test_folders_that_people_mistake_for_checkpoints_are_named(case: str, tiny_copy: Path) -> None:
    change, message, hint = MISTAKEN[case]
    change(tiny_copy)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message) as caught:
        describe_checkpoint(tiny_copy)
    assert re.search(hint, caught.value.hint or "")


def test_the_newest_of_a_training_s_checkpoints_is_proposed(tiny_copy: Path) -> None:
    for step in (5, 100, 20):
        (tiny_copy / f"checkpoint-{step}").mkdir()
        shutil.copy(tiny_copy / "config.json", tiny_copy / f"checkpoint-{step}")
    (tiny_copy / "config.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        describe_checkpoint(tiny_copy)
    assert (caught.value.hint or "").endswith("checkpoint-100")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "model.safetensors", "added_tokens.json"])
@pytest.mark.parametrize(
    ("replace", "message"),
    [
        (lambda path: path.mkdir(), "is a folder, not a file"),
        (lambda path: path.symlink_to("/nowhere/at/all"), "is a broken link, to /nowhere/at/all"),
        (os.mkfifo, "is a pipe or a device, not a file"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tiny_copy: Path, name: str, replace: Callable[[Path], None], message: str) -> None:
    path = tiny_copy / name
    path.unlink(missing_ok=True)
    replace(path)
    with pytest.raises(CheckpointError, match=f"{name} {message}"):
        describe_checkpoint(tiny_copy)


def test_files_that_are_not_read_decide_nothing(tiny_copy: Path) -> None:
    (tiny_copy / "consolidated.safetensors").write_text("version https://git-lfs.example/spec/v1\n")
    (tiny_copy / "notes.json").symlink_to("/nowhere/at/all")
    (tiny_copy / "old.safetensors").mkdir()
    os.mkfifo(tiny_copy / "events.json")
    assert describe_checkpoint(tiny_copy).tensors
