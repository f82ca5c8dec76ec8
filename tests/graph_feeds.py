"""The inputs of one pass of a graph of the contract from position 0, with an empty cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray


def first_pass(
    session: ort.InferenceSession, ids: Sequence[int], context: int, chosen: Sequence[int] | None = None
) -> dict[str, NDArray[np.generic]]:
    """Returns what a session needs to run `ids` as a chain.

    Args:
        session: of a verify or a draft graph.
        ids: the sequence.
        context: positions of the cache.
        chosen: the positions that reach the head; all unless given.
    """
    length = len(ids)
    feeds: dict[str, NDArray[np.generic]] = {
        "input_ids": np.asarray([ids], dtype=np.int64),
        "seqlens_k": np.asarray([length - 1], dtype=np.int32),
        "total_sequence_length": np.asarray(length, dtype=np.int32),
        "position_ids": np.arange(length, dtype=np.int64)[None],
        "past_length": np.zeros(1, dtype=np.int64),
        "tree_mask": np.zeros((1, 1, length, length), dtype=np.float32),
        "logits_index": np.asarray([range(length) if chosen is None else chosen], dtype=np.int64),
    }
    inputs = session.get_inputs()
    for value in inputs:
        if value.name.startswith("past."):
            feeds[value.name] = np.zeros((1, value.shape[1], context, value.shape[3]), dtype=np.float32)
    names = {v.name for v in inputs}
    return {name: feed for name, feed in feeds.items() if name in names}
