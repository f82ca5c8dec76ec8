"""The RoPE tables of an engine, made for as many positions as it is loaded with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.artifact import Rope


def rope_tables(ropes: Mapping[str, Rope], positions: int) -> dict[str, NDArray[np.float32]]:
    """Returns the cosines and sines of every RoPE by the names of the graphs' inputs.

    Args:
        ropes: RoPE parameters of the model by name.
        positions: number of rows.

    Returns:
        Tables float32[positions, pairs].
    """
    tables = {}
    for name, rope in ropes.items():
        cosines, sines = graph_io.rope_names(name)
        # As in transformers, the angles are products in fp32.
        angles = np.arange(positions, dtype=np.float32)[:, None] * np.array(rope.frequencies, dtype=np.float32)[None, :]
        tables[cosines] = (np.cos(angles, dtype=np.float64) * rope.scale).astype(np.float32)
        tables[sines] = (np.sin(angles, dtype=np.float64) * rope.scale).astype(np.float32)
    return tables
