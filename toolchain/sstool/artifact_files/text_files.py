"""Writes an artifact's tokenizer, chat template and generation settings where the runtime looks for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

from ssruntime.artifact import CHAT_TEMPLATE, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from ssruntime.config import read_generation_config
from ssruntime.errors import ArtifactError, CheckpointError
from sstool.checkpoint.describe import Checkpoint, read_json

_TOKEN_IDS: Final = ("eos_token_id", "bos_token_id", "pad_token_id")


def write_text_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the tokenizer, its config, the chat template and the generation settings of a checkpoint.

    A chat template inside `tokenizer_config.json` gets its own file. Special tokens that
    `generation_config.json` lacks are taken from `config.json`, so that no end-of-sequence token is lost.

    Args:
        checkpoint: checkpoint to read the files of.
        folder: folder of the artifact, to write into.

    Raises:
        CheckpointError: if a file of the checkpoint holds a value that cannot be used.
        OSError: if a file cannot be written.
    """
    source = checkpoint.folder
    shutil.copyfile(source / TOKENIZER, folder / TOKENIZER)
    settings = read_json(source / TOKENIZER_CONFIG) if (source / TOKENIZER_CONFIG).exists() else {}
    _write_json(folder / TOKENIZER_CONFIG, settings)
    template = _chat_template(source, settings)
    if template is not None:
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    _write_json(folder / GENERATION_CONFIG, _generation_settings(checkpoint))
    try:
        read_generation_config(folder / GENERATION_CONFIG)
    except ArtifactError as err:
        raise CheckpointError(f"{source / GENERATION_CONFIG}: {err.message.partition(': ')[2]}", "correct the value in that file") from err


def _chat_template(source: Path, settings: dict[str, Any]) -> str | None:
    path = source / CHAT_TEMPLATE
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as err:
            raise CheckpointError(f"{path} cannot be read: {err}", "save the file as UTF-8, or move it away to export without it") from err
        except OSError as err:
            raise CheckpointError(f"{path} cannot be read: {err.strerror}", "check its permissions") from err
    template = settings.get("chat_template")
    if isinstance(template, list):
        # Of several named templates, the one called "default" is meant for chats.
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _generation_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.folder / GENERATION_CONFIG
    settings = read_json(path) if path.exists() else {}
    for key in _TOKEN_IDS:
        if settings.get(key) is None and checkpoint.settings.get(key) is not None:
            settings[key] = checkpoint.settings[key]
    return settings


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
