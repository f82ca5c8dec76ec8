"""A checkpoint's first layers as a checkpoint of their own, for comparing a model that is too large to hold a second time."""

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
"""How many times the layers' pattern is compared in full."""
_LAYERS: Final = 4
"""Layers compared at least."""
_ROOM: Final = 1.5
"""Memory that transformers needs for a model, in sizes of its fp32 weights: they are read, cast and run."""


def layers_to_compare(checkpoint: Checkpoint, available: int | None) -> int:
    """Returns how many of a model's layers its comparison with transformers covers: all that fit in memory, or two patterns.

    Args:
        checkpoint: the model.
        available: bytes of memory there are; None if unknown, and then all layers are compared.
    """
    if available is None or checkpoint.weight_bytes * _ROOM <= available:
        return checkpoint.num_layers
    return min(checkpoint.num_layers, max(_LAYERS, _PATTERNS * period(checkpoint.attention)))


@contextlib.contextmanager
def first_layers(checkpoint: Checkpoint, num_layers: int) -> Iterator[Checkpoint]:
    """Gives a checkpoint of the first layers: another config over the same weight files, whose further tensors nobody asks for."""
    with linked_folder(checkpoint.folder, "first-layers") as folder:
        settings = {key: _cut(value, checkpoint.num_layers, num_layers) for key, value in checkpoint.settings.items()}
        settings[checkpoint.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = num_layers
        (folder / CHECKPOINT_CONFIG).unlink()  # a link to the whole model's, which must not be written through
        (folder / CHECKPOINT_CONFIG).write_text(json.dumps(settings), encoding="utf-8")
        yield describe_checkpoint(folder)


def _cut(value: Any, before: int, after: int) -> Any:
    """Returns a setting as it is, or its beginning if it lists something for each layer."""
    return value[:after] if isinstance(value, list) and len(value) == before else value
