"""The inputs of a pass from position 0, for graphs that are not engines of an artifact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ssruntime import graph_io


def lengths(batch: int, length: int) -> dict[str, NDArray[np.generic]]:
    """Returns the lengths and positions of a pass from position 0 on."""
    return {
        graph_io.QUERY_SEQLENS: np.full(batch, length, dtype=np.int32),
        graph_io.SEQLENS_K: np.full(batch, length - 1, dtype=np.int32),
        graph_io.TOTAL_SEQUENCE_LENGTH: np.array(length, dtype=np.int32),
        graph_io.POSITION_IDS: np.tile(np.arange(length, dtype=np.int64), (batch, 1)),
    }


def whole_text(ids: Sequence[int]) -> dict[str, NDArray[np.generic]]:
    """Returns the inputs of a pass over a text whose tokens all reach the LM head."""
    positions = np.arange(len(ids), dtype=np.int64)[None]
    return {graph_io.INPUT_IDS: np.array([ids], dtype=np.int64), graph_io.LOGITS_INDEX: positions, **lengths(1, len(ids))}
