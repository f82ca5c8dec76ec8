"""Makes a checkpoint of a model's first layers, to compare a model that does not fit in memory twice."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Final

from ssruntime.artifact import CHECKPOINT_CONFIG
from sstool.checkpoint.attention_pattern import period
from sstool.checkpoint.describe import Checkpoint, describe_checkpoint
from sstool.checkpoint.linked_folder import linked_folder

_PATTERNS: Final = 2
"""Periods of the layers' attention pattern that a comparison covers at least."""
_LAYERS: Final = 4
"""Layers that a comparison covers at least."""
_ROOM: Final = 1.5
"""Memory that transformers needs to read, cast and run a model, as a multiple of its fp32 weights' size."""


def layers_to_compare(checkpoint: Checkpoint, available: int | None) -> int:
    """Returns how many of a model's first layers to compare with transformers.

    These are all layers if the model fits in memory. Otherwise they are as few as still cover the attention
    pattern twice, and at least four.

    Args:
        checkpoint: checkpoint of the model.
        available: available memory in bytes; None if unknown, in which case all layers are compared.
    """
    if available is None or checkpoint.weight_bytes * _ROOM <= available:
        return checkpoint.num_layers
    return min(checkpoint.num_layers, max(_LAYERS, _PATTERNS * period(checkpoint.attention)))


@contextlib.contextmanager
def first_layers(checkpoint: Checkpoint, num_layers: int) -> Iterator[Checkpoint]:
    """Yields a checkpoint of the first `num_layers` layers.

    It has its own config, and links to the same weight files. The other layers' tensors stay in them, unused.
    """
    with linked_folder(checkpoint.folder, "first-layers") as folder:
        settings = {key: _cut(value, checkpoint.num_layers, num_layers) for key, value in checkpoint.settings.items()}
        settings[checkpoint.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = num_layers
        (folder / CHECKPOINT_CONFIG).unlink()  # a hard link: writing to it would change the original
        (folder / CHECKPOINT_CONFIG).write_text(json.dumps(settings), encoding="utf-8")
        yield describe_checkpoint(folder)


def _cut(value: Any, before: int, after: int) -> Any:
    """Returns the first entries of a setting with one entry per layer, and any other setting unchanged."""
    return value[:after] if isinstance(value, list) and len(value) == before else value
