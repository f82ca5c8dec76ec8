"""One session's inputs and outputs for one sequence, at fixed addresses, bound once for each query length."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.backends.base import StepOutput
from ssruntime.backends.ort.kv_cache import KvCache, bind_input, bind_output
from ssruntime.backends.ort.tree_mask import TreeMask
from ssruntime.errors import BackendUnavailableError
from ssruntime.proposal import Alternative, branch_rows


class EnginePort:
    """The inputs and outputs of one session for one sequence, with a binding for each query length."""

    def __init__(
        self,
        session: ort.InferenceSession,
        cache: KvCache,
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
            cache: KV cache of the sequence.
            rope: RoPE tables by input name.
            max_query_length: largest number of tokens in a pass of `run`.
            vocab_size: number of tokens in the vocabulary.
            last_row_only: whether `run` gives the row of the last token only; no other reaches the LM head.
            padding: number of rows that attention has beside the tokens of a pass.
        """
        self.session = session
        self._run = session.run_with_iobinding
        self._cache = cache
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
        self._takes_mask = any(v.name == graph_io.TREE_MASK for v in session.get_inputs())
        self._index = np.arange(max_query_length, dtype=np.int64)
        self._num_top = min(graph_io.MAX_TOP_TOKENS, vocab_size)
        self._last_row_only = last_row_only
        self._buffers = self._output_buffers(1 if last_row_only else max_query_length)
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

    def abandon(self, refusal: BackendUnavailableError) -> ort.InferenceSession:
        """Makes every later pass raise this error; returns the session."""

        def refuse(_binding: ort.IOBinding) -> None:
            raise refusal

        self._run = refuse
        return self.session

    def intercept(self, before: Callable[[], None]) -> None:
        """Makes every later pass call a function first."""
        run = self._run

        def intercepted(binding: ort.IOBinding) -> None:
            before()
            run(binding)

        self._run = intercepted

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
        binding, count = self._any_length, len(positions)
        tokens = np.asarray(ids, dtype=np.int64).reshape(1, -1)
        index = np.asarray(positions, dtype=np.int64).reshape(1, -1)
        output = self._output_buffers(count)
        positions_of = np.arange(start, start + tokens.size, dtype=np.int64).reshape(1, -1)
        mask = TreeMask(tokens.size) if self._takes_mask else None
        self._set_length(start, tokens.size)
        self._bind_small(binding, tokens, positions_of, index, mask, output)
        return output, self._timed(binding)

    def _set_length(self, start: int, query_length: int) -> None:
        total = start + query_length + self._padding
        self._lengths_memory[0] = total - 1
        self._lengths_memory[1] = total
        self._past_length_memory[0] = start

    def _bind_query_length(self, query_length: int) -> _Bound:
        if query_length > len(self._ids):
            raise ValueError(f"a pass of {query_length} tokens is longer than the {len(self._ids)} that this engine has buffers for")
        first_row = query_length - 1 if self._last_row_only else 0
        bound = _Bound(self._bind_fixed(), self._buffers.head(query_length - first_row), TreeMask(query_length))
        ids, positions = (part[:query_length].reshape(1, -1) for part in (self._ids, self._positions))
        index = self._index[first_row:query_length].reshape(1, -1)
        self._bind_small(bound.binding, ids, positions, index, bound.mask, bound.output)
        self._bound[query_length] = bound
        return bound

    def _bind_fixed(self) -> ort.IOBinding:
        binding = self.session.io_binding()
        self._cache.bind(binding, self.session)
        for value in self.session.get_inputs():
            if value.name.startswith(graph_io.ROPE_PREFIX):
                bind_input(binding, value.name, self._rope[value.name])
        bind_input(binding, graph_io.SEQLENS_K, self._lengths[:1])
        bind_input(binding, graph_io.TOTAL_SEQUENCE_LENGTH, self._lengths[1:].reshape(()))
        if self._takes_mask:
            bind_input(binding, graph_io.PAST_LENGTH, self._past_length)
        return binding

    def _bind_small(
        self,
        binding: ort.IOBinding,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        index: NDArray[np.int64],
        mask: TreeMask | None,
        output: StepOutput,
    ) -> None:
        bind_input(binding, graph_io.INPUT_IDS, ids)
        bind_input(binding, graph_io.POSITION_IDS, positions)
        if mask is not None and self._takes_mask:
            bind_input(binding, graph_io.TREE_MASK, mask.values)
        bind_input(binding, graph_io.LOGITS_INDEX, index)
        bind_output(binding, graph_io.TOKEN, output.tokens.reshape(1, -1))
        bind_output(binding, graph_io.CONFIDENCE, output.confidence.reshape(1, -1))
        bind_output(binding, graph_io.TOP_TOKENS, output.top_tokens.reshape(1, -1, self._num_top))
        bind_output(binding, graph_io.TOP_LOGITS, output.top_logits.reshape(1, -1, self._num_top))
        bind_output(binding, graph_io.LOGITS, output.logits.reshape(1, -1, self._vocab_size))

    def _output_buffers(self, count: int) -> StepOutput:
        return StepOutput(
            tokens=np.zeros(count, dtype=np.int64),
            confidence=np.zeros(count, dtype=np.float32),
            top_tokens=np.zeros((count, self._num_top), dtype=np.int64),
            top_logits=np.zeros((count, self._num_top), dtype=np.float32),
            logits=np.zeros((count, self._vocab_size), dtype=np.float32),
        )


@dataclass(frozen=True, slots=True)
class _Bound:
    """A binding for passes of one query length, with the buffers that change between passes."""

    binding: ort.IOBinding
    output: StepOutput
    mask: TreeMask
