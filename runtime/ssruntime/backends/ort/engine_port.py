"""One session's inputs and outputs for one row of the KV arena, bound once for each query length."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.backends.base import StepOutput
from ssruntime.backends.ort.kv_arena import KvArena, bind_input
from ssruntime.backends.ort.pass_buffers import PassBuffers, output_buffers
from ssruntime.backends.ort.port import Port
from ssruntime.backends.ort.tree_mask import TreeMask
from ssruntime.proposal import Alternative, branch_rows


class EnginePort(Port):
    """The inputs and outputs of one session for one sequence, with a binding for each query length."""

    def __init__(
        self,
        session: ort.InferenceSession,
        arena: KvArena,
        row: int,
        rope: Mapping[str, NDArray[np.float32]],
        *,
        max_query_length: int,
        vocab_size: int,
        last_row_only: bool = False,
        padding: int = 0,
    ) -> None:
        """Makes the buffers.

        Args:
            session: session of one engine.
            arena: KV caches of the backend's sequences.
            row: row of this sequence in the arena.
            rope: RoPE tables by input name.
            max_query_length: largest number of tokens in a pass of `run`.
            vocab_size: number of tokens in the vocabulary.
            last_row_only: whether `run` gives the row of the last token only; no other reaches the LM head.
            padding: number of rows that attention has beside the tokens of a pass.
        """
        super().__init__(session)
        self._arena, self._row = arena, row
        self._rope = rope
        self._padding = padding
        self._vocab_size = vocab_size
        self._ids = np.zeros(max_query_length, dtype=np.int64)
        self._positions = np.zeros(max_query_length, dtype=np.int64)
        self._lengths = np.zeros(2, dtype=np.int32)
        # Written through memoryviews, for the reason that `StepOutput` gives.
        self._ids_memory, self._positions_memory, self._lengths_memory = self._ids.data, self._positions.data, self._lengths.data
        self._past_length = np.zeros(1, dtype=np.int64)
        self._past_length_memory = self._past_length.data
        self._inputs = frozenset(v.name for v in session.get_inputs())
        self._takes_mask = graph_io.TREE_MASK in self._inputs
        self._index = np.arange(max_query_length, dtype=np.int64)
        self._last_row_only = last_row_only
        self._buffers = output_buffers(1 if last_row_only else max_query_length, vocab_size)
        self._bound: dict[int, _Bound] = {}
        self._any_length: ort.IOBinding | None = None

    def run(self, trunk: Sequence[int], start: int, branches: Sequence[Alternative] = ()) -> tuple[StepOutput, float]:
        """Returns the output of one pass, and the seconds spent in the run call.

        The binding and the buffers of the query length are used again in the next such pass.

        Raises:
            ValueError: if the pass has more tokens than this port has buffers for.
        """
        query_length = len(trunk) + len(branches)
        bound = self._bound.get(query_length) or self._bind_query_length(query_length)
        ids, positions = self._ids_memory, self._positions_memory
        for index, token in enumerate(trunk):
            ids[index] = token
            positions[index] = start + index
        total = start + query_length + self._padding
        lengths = self._lengths_memory
        lengths[0], lengths[1] = total - 1, total
        self._past_length_memory[0] = start
        if branches:
            return bound.output, self._timed_branches(bound, branch_rows((trunk, branches)), start)
        begun = time.perf_counter()
        self._run(bound.binding)
        return bound.output, time.perf_counter() - begun

    @property
    def last_length(self) -> int:
        """Number of KV-cache entries up to the end of the last pass."""
        return int(self._lengths[1])

    def _timed_branches(self, bound: _Bound, rows: list[tuple[int, int, int]], start: int) -> float:
        """Runs a pass over a token tree, whose trunk is in place; returns the seconds of the run call.

        Args:
            bound: binding of the pass's query length.
            rows: branches of the tree; see `branch_rows`.
            start: position of the trunk's first token.
        """
        ids, positions = self._ids_memory, self._positions_memory
        for row, offset, token in rows:
            ids[row] = token
            positions[row] = start + offset
        try:
            bound.mask.hide(rows)
            return self._timed(bound.binding)
        finally:
            # Also after an exception or an interrupt: a leftover mark would hide tokens in later passes.
            bound.mask.show_all()

    def _timed(self, binding: ort.IOBinding) -> float:
        begun = time.perf_counter()
        self._run(binding)
        return time.perf_counter() - begun

    def run_any_length(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> tuple[StepOutput, float]:
        """Returns the rows of the given positions of one pass, and the seconds spent in the run call.

        The pass may have any query length; it uses new buffers.

        Args:
            ids: the tokens of the pass.
            start: position of the first one.
            positions: 0-based indices into `ids`.
        """
        if self._any_length is None:
            self._any_length = self._bind_fixed()
        tokens = np.asarray(ids, dtype=np.int64).reshape(1, -1)
        query_length = tokens.size
        self._set_length(start, query_length)
        buffers = PassBuffers(
            ids=tokens,
            positions=np.arange(start, start + query_length, dtype=np.int64).reshape(1, -1),
            query_lengths=self._query_lengths(query_length),
            last_entries=self._lengths[:1],
            total=self._lengths[1:].reshape(()),
            starts=self._past_length,
            mask=TreeMask(query_length).values if self._takes_mask else None,
            index=np.asarray(positions, dtype=np.int64).reshape(1, -1),
            output=output_buffers(len(positions), self._vocab_size),
        )
        buffers.bind(self._any_length, self._inputs)
        return buffers.output, self._timed(self._any_length)

    def _set_length(self, start: int, query_length: int) -> None:
        total = start + query_length + self._padding
        self._lengths_memory[0] = total - 1
        self._lengths_memory[1] = total
        self._past_length_memory[0] = start

    def _bind_query_length(self, query_length: int) -> _Bound:
        if query_length > len(self._ids):
            raise ValueError(f"a pass of {query_length} tokens is longer than the {len(self._ids)} that this engine has buffers for")
        first_row = query_length - 1 if self._last_row_only else 0
        mask = TreeMask(query_length)
        buffers = PassBuffers(
            ids=self._ids[:query_length].reshape(1, -1),
            positions=self._positions[:query_length].reshape(1, -1),
            query_lengths=self._query_lengths(query_length),
            last_entries=self._lengths[:1],
            total=self._lengths[1:].reshape(()),
            starts=self._past_length,
            mask=mask.values,
            index=self._index[first_row:query_length].reshape(1, -1),
            output=self._buffers.head(query_length - first_row),
        )
        bound = self._bound[query_length] = _Bound(self._bind_fixed(), buffers.output, mask, buffers)
        buffers.bind(bound.binding, self._inputs)
        return bound

    def _query_lengths(self, query_length: int) -> NDArray[np.int32]:
        return np.array([query_length + self._padding], dtype=np.int32)

    def _bind_fixed(self) -> ort.IOBinding:
        binding = self.session.io_binding()
        self._arena.bind(binding, self.session, self._row, 1)
        for name in self._inputs:
            if name.startswith(graph_io.ROPE_PREFIX):
                bind_input(binding, name, self._rope[name])
        return binding


@dataclass(frozen=True, slots=True)
class _Bound:
    """A binding for passes of one query length, with the buffers that change between passes."""

    binding: ort.IOBinding
    output: StepOutput
    mask: TreeMask
    buffers: PassBuffers
