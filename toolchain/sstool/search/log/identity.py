"""The identity of a search: the values that must be equal for a search to continue another's trials."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from ssruntime.artifact import VERIFY_GRAPH, Manifest
from ssruntime.backends.base import Backend, processor_of
from sstool.search.log.records import FORMAT
from sstool.search.settings import SearchSettings


def search_identity(manifest: Manifest, settings: SearchSettings, backend: Backend, draft_memory: int) -> dict[str, Any]:
    """Returns the fields of a log's header that are known before any work is done.

    Args:
        manifest: manifest of the artifact.
        settings: settings of the search.
        backend: the open engines.
        draft_memory: most bytes of a draft's own weights.
    """
    return {
        "format": FORMAT,
        "num_layers": manifest.model.num_layers,
        "verify_sha256": manifest.files[VERIFY_GRAPH].sha256,
        "weights_sha256": manifest.weights_digest,
        "seed": settings.seed,
        "batch": settings.batch,
        "weights": settings.weights,
        "draft_memory": draft_memory,
        "cpu": processor_of(backend),
        "threads": backend.threads,
        "onnxruntime": ort.__version__,
    }
