"""The small inputs and the outputs of a pass, as arrays that a binding refers to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.backends.base import StepOutput
from ssruntime.backends.ort.kv_arena import bind_input, bind_output


@dataclass(frozen=True, slots=True, kw_only=True)
class PassBuffers:
    """The arrays of a pass with B rows, S tokens a row and N logits to keep (see `ssruntime.graph_io`).

    Attributes:
        ids: int64[B, S].
        positions: int64[B, S].
        query_lengths: int32[B].
        last_entries: int32[B], the input `seqlens_k`.
        total: int32[], the input `total_sequence_length`.
        starts: int64[B], the input `past_length`.
        mask: float32[B, 1, S, S]; None for an engine that takes none.
        index: int64[B, N], the input `logits_index`.
        output: B * N rows.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    query_lengths: NDArray[np.int32]
    last_entries: NDArray[np.int32]
    total: NDArray[np.int32]
    starts: NDArray[np.int64]
    mask: NDArray[np.float32] | None
    index: NDArray[np.int64]
    output: StepOutput

    def bind(self, binding: ort.IOBinding, inputs: Collection[str]) -> None:
        """Binds an engine's inputs and all outputs. The arrays must outlive the binding's runs."""
        values: dict[str, NDArray[np.generic] | None] = {
            graph_io.INPUT_IDS: self.ids,
            graph_io.POSITION_IDS: self.positions,
            graph_io.QUERY_SEQLENS: self.query_lengths,
            graph_io.SEQLENS_K: self.last_entries,
            graph_io.TOTAL_SEQUENCE_LENGTH: self.total,
            graph_io.PAST_LENGTH: self.starts,
            graph_io.TREE_MASK: self.mask,
            graph_io.LOGITS_INDEX: self.index,
        }
        for name, array in values.items():
            if name in inputs and array is not None:
                bind_input(binding, name, array)
        shape, output = self.index.shape, self.output
        bind_output(binding, graph_io.TOKEN, output.tokens.reshape(shape))
        bind_output(binding, graph_io.CONFIDENCE, output.confidence.reshape(shape))
        bind_output(binding, graph_io.TOP_TOKENS, output.top_tokens.reshape(*shape, -1))
        bind_output(binding, graph_io.TOP_LOGITS, output.top_logits.reshape(*shape, -1))
        bind_output(binding, graph_io.LOGITS, output.logits.reshape(*shape, -1))


def output_buffers(count: int, vocab_size: int) -> StepOutput:
    """Returns an output of `count` rows to fill."""
    num_top = min(graph_io.MAX_TOP_TOKENS, vocab_size)
    return StepOutput(
        tokens=np.zeros(count, dtype=np.int64),
        confidence=np.zeros(count, dtype=np.float32),
        top_tokens=np.zeros((count, num_top), dtype=np.int64),
        top_logits=np.zeros((count, num_top), dtype=np.float32),
        logits=np.zeros((count, vocab_size), dtype=np.float32),
    )
