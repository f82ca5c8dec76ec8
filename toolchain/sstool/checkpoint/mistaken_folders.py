"""Recognises folders that people mistake for checkpoints, and files that are no files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ssruntime.artifact import CHAT_TEMPLATE, CHECKPOINT_CONFIG, GENERATION_CONFIG, MANIFEST, TOKENIZER, TOKENIZER_CONFIG
from ssruntime.errors import CheckpointError
from ssruntime.strict_reader import read_content
from sstool.checkpoint.safetensors_files import SINGLE_FILE, WEIGHT_INDEX, weight_files

ADAPTER_CONFIG: Final = "adapter_config.json"
_MERGE: Final = "merge it into its base model with peft (merge_and_unload, then save_pretrained), and pass that folder"
_LFS: Final = b"version https://git-lfs"
_LFS_SIZE: Final = 1024
_READ: Final = (
    CHECKPOINT_CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    CHAT_TEMPLATE,
    "special_tokens_map.json",
    "added_tokens.json",
    WEIGHT_INDEX,
    SINGLE_FILE,
)
"""Files that an export reads, besides those that the index of the weights names."""


def refuse_mistaken_folder(folder: Path) -> None:
    """Raises an error if a folder is something else than a checkpoint that can be exported.

    Raises:
        CheckpointError: saying what the folder is, with a hint at what to pass.
    """
    for path in [folder / name for name in (*_READ, *weight_files(folder)) if os.path.lexists(folder / name)]:
        if path.is_symlink() and not path.exists():
            raise CheckpointError(f"{path} is a broken link, to {path.readlink()}", "download the checkpoint again")
        if not path.is_file():
            raise CheckpointError(f"{path} is {'a folder' if path.is_dir() else 'a pipe or a device'}, not a file", "move it away")
        if path.stat().st_size < _LFS_SIZE and read_content(path, error=CheckpointError).startswith(_LFS):
            raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself", "fetch the files: git lfs pull")
    if (folder / ADAPTER_CONFIG).exists():
        if not (folder / CHECKPOINT_CONFIG).exists():
            raise CheckpointError(f"{folder} is a PEFT adapter, not a model", _MERGE)
        raise CheckpointError(
            f"{folder} holds a PEFT adapter ({ADAPTER_CONFIG}), which an export would leave out",
            f"{_MERGE}; or move {ADAPTER_CONFIG} away to export the model without it",
        )
    if not (folder / CHECKPOINT_CONFIG).exists():
        what, hint = next(_kinds(folder), (None, "pass the folder that holds config.json"))
        raise CheckpointError(f"{folder} is {what}" if what else f"{folder} holds no config.json, so it is not a model folder", hint)


def _kinds(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields what a folder without `config.json` seems to be, in words, each with a hint."""
    if (folder / MANIFEST).exists():
        yield "an artifact, not a checkpoint", "pass the model folder that it was exported from"
    for path in _folders(folder / "snapshots"):
        yield "a model's folder in the hub cache; the checkpoint is in its snapshots", f"pass {path}"
    trained = [path for path in _folders(folder) if path.name.startswith("checkpoint-")]
    if trained:
        yield "the output of a training, with a folder for each checkpoint", f"pass {max(trained, key=_step)}"
    for path in _folders(folder):
        yield "a folder of model folders", f"pass {path}"
    for pattern, what, hint in _FORMATS:
        if next(folder.glob(pattern), None) is not None:
            yield what, hint
    if (folder / TOKENIZER).exists():
        yield "a tokenizer without a model", "pass the folder that also holds config.json and the weights"


_FORMATS: Final = (
    ("*.gguf", "a GGUF model", "export the safetensors checkpoint that it was converted from"),
    ("genai_config.json", "an onnxruntime-genai model", "export the safetensors checkpoint that it was made from"),
    ("*.onnx", "an ONNX model", "export the safetensors checkpoint that it was made from"),
    ("model_index.json", "a diffusion pipeline, not a decoder", "pass a decoder checkpoint"),
    ("*.distcp", "a distributed training checkpoint", "save it in one piece first, with save_pretrained()"),
    ("global_step*", "a DeepSpeed checkpoint", "save it in one piece first, with save_pretrained()"),
    ("params.json", "a model in its maker's own format", "download the model in the transformers format, with config.json"),
    ("*.nemo", "a NeMo model", "convert it to the transformers format"),
    ("*.npz", "an MLX model without config.json", "pass the safetensors checkpoint that it was converted from"),
)
"""Files that tell a format, what the folder then is, and a hint."""


def _folders(parent: Path) -> list[Path]:
    """Returns the subfolders that hold a `config.json`."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if (path / CHECKPOINT_CONFIG).is_file())


def _step(folder: Path) -> int:
    """Returns the training step in a name such as `checkpoint-500`; -1 if there is none."""
    digits = folder.name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1
