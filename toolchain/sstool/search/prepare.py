"""What a search stands on, made once and kept in its folder: the calibration texts and the latency table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import onnxruntime as ort

from ssruntime.artifact import WEIGHTS
from ssruntime.errors import RecipeError
from ssruntime.machine import cpu_model
from ssruntime.records import read_record
from sstool.prompts import PromptRecord
from sstool.search.candidates import Candidates
from sstool.search.latency import measure_latency, write_latency
from sstool.search.records import FORMAT, LATENCY, LatencyTable
from sstool.search.settings import SearchSettings
from sstool.search.texts import CachedText, CalibrationText, cache_texts, make_texts

logger = logging.getLogger(__name__)

TEXTS: Final = "texts.json"


def prepare_texts(
    folder: Path,
    candidates: Candidates,
    prompts: Sequence[PromptRecord],
    settings: SearchSettings,
    on_text: Callable[[int, int], None],
) -> list[CachedText]:
    """Returns the texts that an interrupted search left in its folder, if they are what this one would make, or makes them."""
    key = _texts_key(candidates, prompts, settings)
    saved = _read_texts(folder / TEXTS, key)
    if saved is not None:
        return cache_texts(candidates, saved)
    texts = make_texts(candidates, prompts, settings, on_text)
    data = {"key": key, "texts": [dataclasses.asdict(cached.text) for cached in texts]}
    (folder / TEXTS).write_text(json.dumps(data) + "\n", encoding="utf-8")
    return texts


def prepare_latency(
    folder: Path, candidates: Candidates, texts: Sequence[CachedText], settings: SearchSettings, *, known: Path | None
) -> LatencyTable:
    """Returns a table of these weights, threads and machine that was measured earlier, or measures one; it is in the folder then.

    Args:
        folder: the search's.
        candidates: of the artifact.
        texts: to decode while measuring.
        settings: how to sample.
        known: a `latency.json` of an earlier search, if there is one.
    """
    for path in (folder / LATENCY, known):
        table = None if path is None else _read_latency(path)
        if table is not None and _is_ours(table, candidates):
            break
    else:
        table = measure_latency(candidates, [cached.text for cached in texts], settings)
    assert table is not None
    write_latency(table, folder / LATENCY)
    return table


def latency_digest(table: LatencyTable) -> str:
    """Returns a digest of the table's content."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(table), sort_keys=True).encode()).hexdigest()


def _read_latency(path: Path) -> LatencyTable | None:
    try:
        return read_record(LatencyTable, json.loads(path.read_text(encoding="utf-8")), where=str(path), error=RecipeError)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecipeError) as err:
        logger.warning("the latency table %s cannot be used, and is measured anew: %s", path, err)
        return None


def _is_ours(table: LatencyTable, candidates: Candidates) -> bool:
    weights = candidates.engine.artifact.manifest.files[WEIGHTS].sha256
    found = (table.format, table.weights_sha256, table.cpu, table.threads, table.onnxruntime)
    return found == (FORMAT, weights, cpu_model(), candidates.backend.threads, ort.__version__) and bool(table.rows)


def _texts_key(candidates: Candidates, prompts: Sequence[PromptRecord], settings: SearchSettings) -> str:
    """Returns a digest of all that the texts depend on."""
    shaping = (settings.seed, settings.sampled_weight, settings.greedy_weight, settings.sampled_tokens, settings.greedy_tokens)
    files = {name: entry.sha256 for name, entry in candidates.engine.artifact.manifest.files.items() if name != "draft.onnx"}
    parts = [
        files,
        [dataclasses.asdict(prompt) for prompt in prompts],
        [*shaping, settings.temperature, settings.top_p],
        candidates.backend.max_context,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_texts(path: Path, key: str) -> list[CalibrationText] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["key"] != key:
            return None
        return [read_record(CalibrationText, item, where=str(path), error=RecipeError) for item in data["texts"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecipeError) as err:
        logger.warning("the texts of the interrupted search cannot be used, and are made anew: %s", err)
        return None
