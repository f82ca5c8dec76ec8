"""Measures the activations before each product on calibration text, with the fp32 engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ssruntime.artifact import SkipSet
from ssruntime.backends.base import Backend
from sstool.artifact_files.graph_files import serialize
from sstool.graph.feeds import whole_text
from sstool.graph.lower import lower_draft
from sstool.graph.products import product_groups

_SAMPLES: Final = 16
"""Rows that are kept of each text."""
_MOST_SAMPLES: Final = 256


@dataclass(frozen=True, slots=True)
class InputStatistics:
    """The activations that enter a group of products.

    Attributes:
        largest: float32[rows], largest absolute value of each channel.
        mean_square: float32[rows].
        samples: float32[n, rows], some of the activations.
    """

    largest: NDArray[np.float32]
    mean_square: NDArray[np.float32]
    samples: NDArray[np.float32]


def measure_inputs(backend: Backend, base: ir.Model, texts: Sequence[Sequence[int]]) -> dict[str, InputStatistics]:
    """Returns the statistics of each group of products, by the group's name.

    Args:
        backend: open engines of the fp32 artifact.
        base: its base graph.
        texts: token ids of the calibration texts.
    """
    model = lower_draft(base, SkipSet())
    groups = product_groups(model.graph)
    sources = {group.name: group.source for group in groups}
    model.graph.outputs[:] = list(dict.fromkeys(sources.values()))
    graph = backend.open_graph(serialize(model), "the calibration graph")
    names = [value.name or "" for value in model.graph.outputs]
    sizes: dict[str, NDArray[np.float32]] = {}
    squares: dict[str, NDArray[np.float32]] = {}
    samples: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    tokens = 0
    for ids in texts:
        tokens += len(ids)
        for name, found in zip(names, graph.run(names, whole_text(ids)), strict=True):
            rows = np.asarray(found, dtype=np.float32).reshape(-1, found.shape[-1])
            size, square = np.abs(rows).max(axis=0), np.square(rows, dtype=np.float32).sum(axis=0)
            sizes[name] = np.maximum(sizes[name], size) if name in sizes else size
            squares[name] = squares[name] + square if name in squares else square
            if len(samples[name]) < _MOST_SAMPLES // _SAMPLES:
                samples[name].append(rows[:: max(1, len(rows) // _SAMPLES)][:_SAMPLES].copy())
    of_source: Mapping[str, InputStatistics] = {
        name: InputStatistics(sizes[name], squares[name] / np.float32(tokens), np.concatenate(samples[name])) for name in names
    }
    return {group: of_source[source.name or ""] for group, source in sources.items()}
