"""Stores the calibration texts in a search's work folder, so that a resumed search does not repeat them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from ssruntime.artifact import DRAFT_GRAPH, DRAFT_WEIGHTS
from ssruntime.errors import RecipeError
from ssruntime.scratch import write_whole
from ssruntime.strict_reader import parse_json, read_record
from sstool.prompts import PromptRecord
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.log.records import TEXTS, TRIALS
from sstool.search.settings import KINDS, SearchSettings
from sstool.search.texts.make import CachedText, CalibrationText, cache_texts, make_texts

logger = logging.getLogger(__name__)

OTHER: Final = "other"


def prepare_texts(
    folder: Path,
    builder: DraftBuilder,
    prompts: Sequence[PromptRecord],
    settings: SearchSettings,
    on_text: Callable[[int, int], None],
    *,
    is_begun: bool = False,
) -> list[CachedText]:
    """Returns the folder's texts if this search would make the same ones; otherwise makes and stores them.

    Args:
        folder: work folder of the search.
        builder: draft builder of the artifact.
        prompts: prompts to continue.
        settings: settings of the search.
        on_text: called before each text with the number of texts done and their number in all.
        is_begun: whether the folder's log may hold trials that used the texts in the folder.

    Raises:
        RecipeError: if such trials used other texts.
    """
    key = _texts_key(builder, prompts, settings)
    saved = _read_texts(folder / TEXTS, key, builder)
    if isinstance(saved, list):
        return cache_texts(builder, saved)
    if saved is OTHER and is_begun:
        raise RecipeError(
            f"{folder / TRIALS} belongs to another search: its calibration texts differ",
            "search again without --resume, or with the prompts and settings that it began with",
        )
    texts = make_texts(builder, prompts, settings, on_text)
    data = {"key": key, "texts": [dataclasses.asdict(cached.text) for cached in texts]}
    write_whole(folder / TEXTS, (json.dumps(data) + "\n").encode())
    return texts


def _texts_key(builder: DraftBuilder, prompts: Sequence[PromptRecord], settings: SearchSettings) -> str:
    """Returns a digest of everything that the texts depend on."""
    lengths = [settings.tokens_of(kind) for kind in KINDS]
    shaping = (settings.seed, settings.sampled_weight, settings.greedy_weight, *lengths)
    files = {
        name: entry.sha256 for name, entry in builder.engine.artifact.manifest.files.items() if name not in (DRAFT_GRAPH, DRAFT_WEIGHTS)
    }
    parts = [
        files,
        [dataclasses.asdict(prompt) for prompt in prompts],
        [*shaping, settings.temperature, settings.top_p],
        builder.backend.max_context,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_texts(path: Path, key: str, builder: DraftBuilder) -> list[CalibrationText] | Literal["other"] | None:
    """Returns the stored texts; `OTHER` if their key differs, and None if they are missing or damaged."""
    try:
        data = parse_json(path.read_bytes())
        if data["key"] != key:
            return OTHER
        texts = [read_record(CalibrationText, item, where=str(path), error=RecipeError) for item in data["texts"]]
        if not texts or not all(_is_sound(text, builder) for text in texts):
            raise RecipeError(f"{path}: these are not texts of this model")
        return texts
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecipeError) as err:
        logger.warning("the calibration texts of the interrupted search cannot be used and are made again: %s", err)
        return None


def _is_sound(text: CalibrationText, builder: DraftBuilder) -> bool:
    """Returns whether a text has a round, fits the context and consists of the model's tokens."""
    ids = (*text.prompt, *text.tokens)
    backend = builder.backend
    has_rounds = bool(text.prompt) and 2 <= text.length <= len(text.tokens)
    return has_rounds and len(ids) <= backend.max_context and min(ids) >= 0 and max(ids) < backend.vocab_size
