"""The inputs for one pass of an exported graph from position 0, with an empty KV cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime.artifact import Rope
from ssruntime.backends.rope import rope_tables


def first_pass(
    session: ort.InferenceSession,
    ids: Sequence[int],
    context: int,
    rope: Mapping[str, Rope],
    chosen: Sequence[int] | None = None,
) -> dict[str, NDArray[np.generic]]:
    """Returns the feeds with which a session runs `ids` as one causal sequence, without alternatives.

    Args:
        session: session of a verify or a draft graph.
        ids: token ids of the sequence.
        context: capacity of the KV cache, in positions.
        rope: RoPE parameters of the model by name.
        chosen: positions whose logits are computed; all by default.
    """
    length = len(ids)
    feeds: dict[str, NDArray[np.generic]] = {
        "input_ids": np.asarray([ids], dtype=np.int64),
        "query_seqlens": np.asarray([length], dtype=np.int32),
        "seqlens_k": np.asarray([length - 1], dtype=np.int32),
        "total_sequence_length": np.asarray(length, dtype=np.int32),
        "position_ids": np.arange(length, dtype=np.int64)[None],
        "past_length": np.zeros(1, dtype=np.int64),
        "tree_mask": np.zeros((1, 1, length, length), dtype=np.float32),
        "logits_index": np.asarray([range(length) if chosen is None else chosen], dtype=np.int64),
    }
    feeds |= rope_tables(rope, context)
    inputs = session.get_inputs()
    for value in inputs:
        if value.name.startswith("past."):
            feeds[value.name] = np.zeros((1, value.shape[1], context, value.shape[3]), dtype=np.float32)
    names = {v.name for v in inputs}
    return {name: feed for name, feed in feeds.items() if name in names}
