"""Stores the latency table in the folder of a search, and finds it again for a later search."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from ssruntime.artifact import VERIFY_GRAPH
from ssruntime.backends.base import processor_of
from ssruntime.errors import RecipeError
from ssruntime.scratch import write_whole
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import DraftSpace
from sstool.search.log.read import read_latency
from sstool.search.log.records import FORMAT, LATENCY, LatencyTable
from sstool.search.settings import SearchSettings
from sstool.search.speed_model.measure import measure_latency
from sstool.search.texts.make import CachedText

logger = logging.getLogger(__name__)


def prepare_latency(
    folder: Path,
    builder: DraftBuilder,
    space: DraftSpace,
    texts: Sequence[CachedText],
    settings: SearchSettings,
    *,
    known: LatencyTable | None,
) -> LatencyTable:
    """Returns the known table, or one that is measured now; stores it in the folder in both cases.

    Args:
        folder: work folder of the search.
        builder: draft builder of the artifact.
        space: the search space.
        texts: calibration texts to decode while measuring.
        settings: settings of the search, which fix the sampling.
        known: result of `find_latency`.
    """
    table = known or measure_latency(builder, space, [cached.text for cached in texts], settings)
    content = latency_json(table)
    if not (folder / LATENCY).exists() or (folder / LATENCY).read_bytes() != content:
        write_whole(folder / LATENCY, content)
    return table


def find_latency(builder: DraftBuilder, places: Sequence[Path], *, has_own_weights: bool) -> LatencyTable | None:
    """Returns the first stored table of this model, machine and number of threads; None if there is none.

    Args:
        builder: draft builder of the artifact.
        places: files that may hold a table.
        has_own_weights: whether the table must know the costs of int4 weights.
    """
    tables = (_read_latency(path, builder.num_layers) for path in places)
    ours = (table for table in tables if table is not None and _is_ours(table, builder))
    return next((table for table in ours if table.rows[0].int4 is not None or not has_own_weights), None)


def latency_digest(table: LatencyTable) -> str:
    """Returns the SHA-256 digest of a table's content."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(table), sort_keys=True).encode()).hexdigest()


def _read_latency(path: Path, num_layers: int) -> LatencyTable | None:
    try:
        return read_latency(path, num_layers)
    except RecipeError as err:
        logger.warning("the latency table %s cannot be used and is measured again: %s", path, err)
        return None


def _is_ours(table: LatencyTable, builder: DraftBuilder) -> bool:
    manifest = builder.engine.artifact.manifest
    engines = (manifest.weights_digest, manifest.files[VERIFY_GRAPH].sha256)
    found = (table.format, table.weights_sha256, table.verify_sha256, table.cpu, table.threads, table.onnxruntime)
    return found == (FORMAT, *engines, processor_of(builder.backend), builder.backend.threads, ort.__version__) and bool(table.rows)


def latency_json(table: LatencyTable) -> bytes:
    """Returns the content of `latency.json`."""
    return (json.dumps(dataclasses.asdict(table), indent=1) + "\n").encode()
