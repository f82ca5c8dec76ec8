"""Opens an artifact to be checked: on its own device, or on the processor where that is not at hand."""

from __future__ import annotations

import functools
import logging

from ssruntime.artifact import Artifact
from ssruntime.engine import Engine, load
from ssruntime.errors import BackendUnavailableError

logger = logging.getLogger(__name__)


def open_to_check(
    artifact: Artifact, *, threads: int | None = None, max_context: int | None = None, max_sequences: int = 1, draft: bool = True
) -> Engine:
    """Returns the open engines of an artifact.

    The graphs of a target for GPUs run on the processor if their device, or its library, is missing. That
    shows whether the graphs are right, and nothing about the device's kernels.

    Args:
        artifact: the artifact.
        threads: as in `load`.
        max_context: as in `load`.
        max_sequences: as in `load`.
        draft: as in `load`.

    Raises:
        BackendUnavailableError: if the graphs cannot run on the processor either, as in bf16.
        ArtifactError: if a graph cannot be opened.
    """
    opened = functools.partial(
        load,
        artifact.folder,
        threads=threads,
        max_context=max_context,
        max_sequences=max_sequences,
        draft=draft,
        prefix_cache=0,  # every pass is to be checked
    )
    try:
        return opened(on_cpu=False)
    except BackendUnavailableError as err:
        if artifact.manifest.target == "ort-cpu":
            raise
        logger.warning("checking on the processor: %s", err.message)
    return opened(on_cpu=True)
