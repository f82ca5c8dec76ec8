"""Writes an artifact's tokenizer, chat template and generation settings where the runtime looks for them.

The runtime's tokenizer must give the ids that transformers gives, on probe texts and chats. Where it does
not, because other files than `tokenizer.json` define the tokenizer too, the whole tokenizer is written into
that file.
"""

from __future__ import annotations

import json
import logging
import reprlib
import shutil
from pathlib import Path
from typing import Any, Final

from ssruntime.artifact import CHAT_TEMPLATE, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from ssruntime.config import read_generation_config
from ssruntime.errors import ArtifactError, CheckpointError, PromptError, UnsupportedModelError
from ssruntime.text.codec import PromptCodec
from ssruntime.text.prompt import Chat
from sstool.checkpoint.describe import Checkpoint, read_json
from sstool.checkpoint.tokenizer import ReferenceTokenizer, reference_tokenizer

logger = logging.getLogger(__name__)

_SHORT: Final = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxlist = 60, 12
_TOKEN_IDS: Final = ("eos_token_id", "bos_token_id", "pad_token_id")


def write_text_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the tokenizer, its config, the chat template and the generation settings of a checkpoint.

    The tokenizer's config gets the special tokens as transformers names them, whichever file they are from. A
    chat template inside `tokenizer_config.json` gets its own file. Special tokens that
    `generation_config.json` lacks are taken from `config.json`, so that no end-of-sequence token is lost.

    Args:
        checkpoint: checkpoint to read the files of.
        folder: folder of the artifact, to write into.

    Raises:
        CheckpointError: if a file of the checkpoint holds a value that cannot be used.
        UnsupportedModelError: if the runtime cannot encode texts or chats as transformers does.
        OSError: if a file cannot be written.
    """
    source = checkpoint.folder
    shutil.copyfile(source / TOKENIZER, folder / TOKENIZER)
    settings = read_json(source / TOKENIZER_CONFIG) if (source / TOKENIZER_CONFIG).exists() else {}
    template = _chat_template(source, settings)
    reference = reference_tokenizer(source)
    if reference is not None:
        settings = {**settings, **reference.special_tokens}
        template = reference.chat_template if template is None else template
    _write_json(folder / TOKENIZER_CONFIG, settings)
    if template is not None:
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    if reference is not None:
        _require_same_ids(reference, checkpoint, folder)
    _write_json(folder / GENERATION_CONFIG, _generation_settings(checkpoint))
    try:
        read_generation_config(folder / GENERATION_CONFIG)
    except ArtifactError as err:
        raise CheckpointError(f"{source / GENERATION_CONFIG}: {err.message.partition(': ')[2]}", "correct the value in that file") from err


def _require_same_ids(reference: ReferenceTokenizer, checkpoint: Checkpoint, folder: Path) -> None:
    """Compares the runtime's token ids with the reference; writes its tokenizer if they differ."""
    if _difference(reference, checkpoint, folder) is not None:
        logger.debug("tokenizer.json alone gives other ids than transformers: the whole tokenizer is written")
        (folder / TOKENIZER).write_text(reference.to_json(), encoding="utf-8")
    found = _difference(reference, checkpoint, folder)
    if found is not None:
        raise UnsupportedModelError(
            f"{checkpoint.folder}: this tokenizer cannot be exported: {found}",
            "save the tokenizer with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    codec = PromptCodec(folder, checkpoint.vocab_size)
    for messages, expected in reference.chats() if codec.chat is not None else ():
        try:
            rendered = codec.render(Chat(messages=messages))
        except PromptError as err:
            rendered = err.message
        if rendered != expected:
            raise UnsupportedModelError(
                f"{checkpoint.folder}: the chat template gives {_SHORT.repr(rendered)} where transformers gives {_SHORT.repr(expected)}",
                f"move {CHAT_TEMPLATE} away to export without chats",
            )


def _difference(reference: ReferenceTokenizer, checkpoint: Checkpoint, folder: Path) -> str | None:
    """Returns the first probe text of which the ids differ, in words; None if there is none."""
    tokenizer = PromptCodec(folder, checkpoint.vocab_size).tokenizer
    for text in reference.probes():
        ours, theirs = list(tokenizer.encode(text).ids), reference.encode(text)
        if ours != theirs:
            return f"the text {_SHORT.repr(text)} has the tokens {_SHORT.repr(ours)}, and with transformers {_SHORT.repr(theirs)}"
    return None


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
