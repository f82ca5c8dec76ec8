"""One session's ragged passes: several sequences in one pass, each with its own number of tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.backends.base import Pass, StepOutput
from ssruntime.backends.ort.kv_arena import KvArena, bind_input
from ssruntime.backends.ort.pass_buffers import PassBuffers, output_buffers
from ssruntime.backends.ort.port import Port
from ssruntime.errors import BackendUnavailableError
from ssruntime.proposal import branch_rows


class RowPass(NamedTuple):
    """A pass of one sequence.

    Attributes:
        row: row of the sequence in the KV arena.
        wanted: pass that the sequence wants.
    """

    row: int
    wanted: Pass

    @property
    def query_length(self) -> int:
        """Number of tokens of the pass."""
        return len(self.wanted.trunk) + len(self.wanted.branches)


class RaggedPort(Port):
    """The inputs and outputs of one session for passes of several sequences.

    A pass covers the rows of the arena from the first to the last of its sequences. Rows between them that
    have no pass take no part: their KV caches stay as they are.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        arena: KvArena,
        rope: Mapping[str, NDArray[np.float32]],
        *,
        vocab_size: int,
        min_query_length: int = 1,
        padding: int = 0,
    ) -> None:
        """Takes an open session.

        Args:
            session: session of one engine.
            arena: KV caches of the backend's sequences.
            rope: RoPE tables by input name.
            vocab_size: number of tokens in the vocabulary.
            min_query_length: fewest tokens that a row counts; a row of fewer counts padding.
            padding: number of query rows that attention has beside the tokens of each row.
        """
        super().__init__(session)
        self._arena = arena
        self._rope = rope
        self._inputs = frozenset(v.name for v in session.get_inputs())
        self._vocab_size = vocab_size
        self._min_query_length = min_query_length
        self._padding = padding
        self._bound: dict[tuple[int, int], ort.IOBinding] = {}
        self._lock = threading.Lock()

    def run(self, passes: Sequence[RowPass]) -> tuple[list[StepOutput], float]:
        """Returns the output of each pass, in memory of its own, and the seconds spent in the run call."""
        first, last = min(p.row for p in passes), max(p.row for p in passes)
        buffers, kept = self._fill(passes, first, last - first + 1)
        with self._lock:
            binding = self._binding(first, last - first + 1)
            buffers.bind(binding, self._inputs)
            begun = time.perf_counter()
            self._run(binding)
            seconds = time.perf_counter() - begun
        num_kept = buffers.index.shape[1]
        places = ((p.row - first) * num_kept for p in passes)
        return [buffers.output.tail(at).head(count) for at, count in zip(places, kept, strict=True)], seconds

    def abandon(self, refusal: BackendUnavailableError) -> ort.InferenceSession:
        """Makes every later pass raise this error; returns the session."""
        self._lock = threading.Lock()  # the thread that held it is not in the forked process
        return super().abandon(refusal)

    def _fill(self, passes: Sequence[RowPass], first: int, rows: int) -> tuple[PassBuffers, list[int]]:
        """Returns the buffers of a pass, and the number of logits that each sequence gets."""
        longest = max(p.query_length for p in passes)
        kept = [p.query_length if p.wanted.kind == "verify" else 1 for p in passes]
        ids = np.zeros((rows, longest), dtype=np.int64)
        positions = np.zeros((rows, longest), dtype=np.int64)
        query_lengths = np.zeros(rows, dtype=np.int32)
        last_entries = np.zeros(rows, dtype=np.int32)
        starts = np.zeros(rows, dtype=np.int64)
        index = np.zeros((rows, max(kept)), dtype=np.int64)
        mask = np.zeros((rows, 1, longest, longest), dtype=np.float32) if graph_io.TREE_MASK in self._inputs else None
        for one, count in zip(passes, kept, strict=True):
            at, (_, trunk, start, branches) = one.row - first, one.wanted
            ids[at, : len(trunk)] = trunk
            positions[at, : len(trunk)] = np.arange(start, start + len(trunk))
            for row, offset, token in branch_rows((trunk, branches)):
                ids[at, row], positions[at, row] = token, start + offset
                if mask is not None:
                    mask[at, 0, row, offset:row] = graph_io.HIDDEN
            counted = max(one.query_length, self._min_query_length) + self._padding
            query_lengths[at], last_entries[at], starts[at] = counted, start + counted - 1, start
            index[at, :count] = np.arange(one.query_length - count, one.query_length)
        total = int(max(starts.max() + longest, last_entries.max() + 1))
        buffers = PassBuffers(
            ids=ids,
            positions=positions,
            query_lengths=query_lengths,
            last_entries=last_entries,
            total=np.array(total, dtype=np.int32),
            starts=starts,
            mask=mask,
            index=index,
            output=output_buffers(index.size, self._vocab_size),
        )
        return buffers, kept

    def _binding(self, first: int, rows: int) -> ort.IOBinding:
        binding = self._bound.get((first, rows))
        if binding is None:
            binding = self._bound[first, rows] = self.session.io_binding()
            self._arena.bind(binding, self.session, first, rows)
            for name in self._inputs:
                if name.startswith(graph_io.ROPE_PREFIX):
                    bind_input(binding, name, self._rope[name])
        return binding
