"""Keeps the costs of passes in the cache folder: measured once per host, artifact, draft and threads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ssruntime.artifact import VERIFY_GRAPH, Artifact, DraftEntry
from ssruntime.backends.base import Backend, Slot, processor_of
from ssruntime.cache_folder import cache_folder
from ssruntime.errors import ArtifactError
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.pass_costs.measure import LEAST_SECONDS, measure_costs
from ssruntime.planning.costs import PassCosts
from ssruntime.scratch import write_whole
from ssruntime.strict_reader import parse_json, read_record

logger = logging.getLogger(__name__)

_FORMAT: Final = 2
_FOLDER: Final = "costs"
_MOST_SECONDS: Final = 1e4
_LEAST_CONTEXT: Final = 1024
"""Least context that costs must have been measured in to be kept."""


def known_costs(artifact: Artifact, backend: Backend, draft: DraftEntry | None, slots: Sequence[Slot]) -> PassCosts:
    """Returns the costs of passes that as many sequences share as there are slots, on this host.

    They are measured now if they are not known.

    Args:
        artifact: the artifact.
        backend: its open engines.
        draft: its open draft; None if none is open.
        slots: slots that no sequence uses, to measure on; at least one.
    """
    path = _path(artifact, backend, draft, len(slots))
    if path is not None and (kept := _read(path)) is not None:
        return kept
    threads = backend.threads if backend.device == "cpu" else None
    found, is_steady = measure_costs(backend, slots, has_draft=draft is not None, threads=threads)
    if path is None or not is_steady:
        return found  # other work took the processor's time: the next process measures again
    if backend.max_context < min(artifact.manifest.max_context, _LEAST_CONTEXT):
        return found  # a load with more context must measure further
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, (json.dumps(dataclasses.asdict(found)) + "\n").encode())
    except OSError as err:
        logger.debug("the costs of passes cannot be kept: %s", err)
    return found


def stored_costs(artifact: Artifact, backend: Backend, draft: DraftEntry | None, sequences: int) -> PassCosts | None:
    """Returns the costs of passes that some sequences share, if they were measured on this host before."""
    path = _path(artifact, backend, draft, sequences)
    return None if path is None else _read(path)


def _path(artifact: Artifact, backend: Backend, draft: DraftEntry | None, sequences: int) -> Path | None:
    """Returns the file of the costs of passes that some sequences share; None if there is no cache folder."""
    try:
        return cache_folder() / _FOLDER / f"{_key(artifact, backend, draft, sequences)}.json"
    except OSError:
        return None


def _key(artifact: Artifact, backend: Backend, draft: DraftEntry | None, sequences: int) -> str:
    files = artifact.manifest.files
    parts = {
        "format": _FORMAT,
        "verify": files[VERIFY_GRAPH].sha256,
        "weights": artifact.manifest.weights_digest,
        "draft": None if draft is None else [files[name].sha256 for name in (draft.graph, *draft.weights)],
        "processor": processor_of(backend),
        "threads": backend.threads,
        "bit_exact": backend.capabilities.bit_exact,
        "sequences": sequences,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def _read(path: Path) -> PassCosts | None:
    """Returns the stored costs; None if there are none, or they are damaged."""
    try:
        found = read_record(PassCosts, parse_json(path.read_bytes()), where=str(path), error=ArtifactError)
    except (OSError, ValueError, ArtifactError):
        return None
    count = len(found.contexts)
    whole = count > 0 and len(found.verify) == len(found.drafted) == len(found.draft) == count
    rows = (*found.verify, *found.drafted)
    possible = all(LEAST_SECONDS <= seconds <= _MOST_SECONDS for row in rows for seconds in row)
    possible = possible and all(0 <= seconds <= _MOST_SECONDS for seconds in found.draft)
    of_length = all(len(row) == MAX_QUERY_LENGTH for row in rows)
    return found if whole and possible and of_length and sorted(set(found.contexts)) == list(found.contexts) else None
