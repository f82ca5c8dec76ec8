"""The identity of a search: the values that must be equal for a search to continue another's trials."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from ssruntime.artifact import VERIFY_GRAPH, Manifest
from ssruntime.machine import cpu_model
from sstool.search.log.records import FORMAT
from sstool.search.settings import SearchSettings


def search_identity(manifest: Manifest, settings: SearchSettings, threads: int) -> dict[str, Any]:
    """Returns the fields of a log's header that are known before any work is done.

    Args:
        manifest: manifest of the artifact.
        settings: settings of the search.
        threads: number of threads of each engine.
    """
    return {
        "format": FORMAT,
        "num_layers": manifest.model.num_layers,
        "verify_sha256": manifest.files[VERIFY_GRAPH].sha256,
        "weights_sha256": manifest.weights_digest,
        "seed": settings.seed,
        "batch": settings.batch,
        "weights": settings.weights,
        "cpu": cpu_model(),
        "threads": threads,
        "onnxruntime": ort.__version__,
    }
