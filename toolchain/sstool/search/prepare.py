"""What a search stands on, made once and kept in its folder: the calibration texts and the latency table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import onnxruntime as ort

from ssruntime.artifact import DRAFT_GRAPH, VERIFY_GRAPH, WEIGHTS
from ssruntime.errors import RecipeError
from ssruntime.machine import cpu_model
from ssruntime.scratch import write_whole
from ssruntime.strict_reader import read_record
from sstool.prompts import PromptRecord
from sstool.search.drafts.builder import Candidates
from sstool.search.log.read import read_latency
from sstool.search.log.records import FORMAT, LATENCY, TEXTS, TRIALS, LatencyTable
from sstool.search.settings import SearchSettings
from sstool.search.speed_model.measure import latency_json, measure_latency
from sstool.search.texts.make import KINDS, CachedText, CalibrationText, cache_texts, make_texts, tokens_of

logger = logging.getLogger(__name__)

OTHER: Final = "other"


def prepare_texts(
    folder: Path,
    candidates: Candidates,
    prompts: Sequence[PromptRecord],
    settings: SearchSettings,
    on_text: Callable[[int, int], None],
    *,
    is_begun: bool = False,
) -> list[CachedText]:
    """Returns the texts that an interrupted search left in its folder, if they are what this one would make, or makes them.

    Args:
        folder: the search's.
        candidates: of the artifact.
        prompts: to continue.
        settings: how.
        on_text: told how many are done, of how many.
        is_begun: whether trials were made with the texts that are there.

    Raises:
        RecipeError: if trials were made with other texts.
    """
    key = _texts_key(candidates, prompts, settings)
    saved = _read_texts(folder / TEXTS, key, candidates)
    if isinstance(saved, list):
        return cache_texts(candidates, saved)
    if saved is OTHER and is_begun:
        raise RecipeError(
            f"{folder / TRIALS} is of another search: its calibration texts are others",
            "search anew, without --resume, or with the prompts and settings that it was begun with",
        )
    texts = make_texts(candidates, prompts, settings, on_text)
    data = {"key": key, "texts": [dataclasses.asdict(cached.text) for cached in texts]}
    write_whole(folder / TEXTS, (json.dumps(data) + "\n").encode())
    return texts


def prepare_latency(
    folder: Path, candidates: Candidates, texts: Sequence[CachedText], settings: SearchSettings, *, known: LatencyTable | None
) -> LatencyTable:
    """Returns the table that is known, or measures one; it is in the folder then.

    Args:
        folder: the search's.
        candidates: of the artifact.
        texts: to decode while measuring.
        settings: how to sample.
        known: what `find_latency` found.
    """
    table = known or measure_latency(candidates, [cached.text for cached in texts], settings)
    content = latency_json(table)
    if not (folder / LATENCY).exists() or (folder / LATENCY).read_bytes() != content:
        write_whole(folder / LATENCY, content)
    return table


def find_latency(candidates: Candidates, places: Sequence[Path]) -> LatencyTable | None:
    """Returns the first table that is of these weights, threads and machine; None if there is none."""
    tables = (_read_latency(path, candidates.num_layers) for path in places)
    return next((table for table in tables if table is not None and _is_ours(table, candidates)), None)


def latency_digest(table: LatencyTable) -> str:
    """Returns a digest of the table's content."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(table), sort_keys=True).encode()).hexdigest()


def _read_latency(path: Path, num_layers: int) -> LatencyTable | None:
    try:
        return read_latency(path, num_layers)
    except RecipeError as err:
        logger.warning("the latency table %s cannot be used, and is measured anew: %s", path, err)
        return None


def _is_ours(table: LatencyTable, candidates: Candidates) -> bool:
    files = candidates.engine.artifact.manifest.files
    engines = (files[WEIGHTS].sha256, files[VERIFY_GRAPH].sha256)
    found = (table.format, table.weights_sha256, table.verify_sha256, table.cpu, table.threads, table.onnxruntime)
    return found == (FORMAT, *engines, cpu_model(), candidates.backend.threads, ort.__version__) and bool(table.rows)


def _texts_key(candidates: Candidates, prompts: Sequence[PromptRecord], settings: SearchSettings) -> str:
    """Returns a digest of all that the texts depend on."""
    lengths = [tokens_of(settings, kind) for kind in KINDS]
    shaping = (settings.seed, settings.sampled_weight, settings.greedy_weight, *lengths)
    files = {name: entry.sha256 for name, entry in candidates.engine.artifact.manifest.files.items() if name != DRAFT_GRAPH}
    parts = [
        files,
        [dataclasses.asdict(prompt) for prompt in prompts],
        [*shaping, settings.temperature, settings.top_p],
        candidates.backend.max_context,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_texts(path: Path, key: str, candidates: Candidates) -> list[CalibrationText] | Literal["other"] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["key"] != key:
            return OTHER
        texts = [read_record(CalibrationText, item, where=str(path), error=RecipeError) for item in data["texts"]]
        if not texts or not all(_is_sound(text, candidates) for text in texts):
            raise RecipeError(f"{path}: these are no texts of this model")
        return texts
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, RecipeError) as err:
        logger.warning("the texts of the interrupted search cannot be used, and are made anew: %s", err)
        return None


def _is_sound(text: CalibrationText, candidates: Candidates) -> bool:
    ids = (*text.prompt, *text.tokens)
    backend = candidates.backend
    has_rounds = bool(text.prompt) and 2 <= text.length <= len(text.tokens)
    return has_rounds and len(ids) <= backend.max_context and min(ids) >= 0 and max(ids) < backend.vocab_size
