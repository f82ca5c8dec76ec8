"""One sequence's slot: a row of the KV arena and small buffers, bound to the sessions of the engines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.backends.base import PREFILL_CHUNK, DraftEngine, Pass, StepOutput, prefill_passes
from ssruntime.backends.ort.engine_port import EnginePort
from ssruntime.backends.ort.kv_arena import RESERVE, KvArena
from ssruntime.backends.ort.ragged_passes import RaggedPasses
from ssruntime.backends.ort.sessions import TargetSessions
from ssruntime.errors import BackendUnavailableError
from ssruntime.proposal import Alternative


class SlotLimits(NamedTuple):
    """What a slot allows; see `backends.base.Slot`."""

    max_context: int
    alternatives_end: int
    attention_block: int
    vocab_size: int


class OrtSlot:
    """A row of the KV arena and small buffers, bound to all sessions (see `backends.base.Slot`).

    Used by one thread at a time.

    Attributes:
        arena: KV caches of several sequences.
        row: row of this sequence.
        shared: engine passes that the rows of the arena can share; None if the arena has one row.
    """

    def __init__(
        self,
        target: TargetSessions,
        draft: ort.InferenceSession | None,
        rope: Mapping[str, NDArray[np.float32]],
        arena: KvArena,
        row: int,
        *,
        limits: SlotLimits,
        shared: RaggedPasses | None = None,
    ) -> None:
        self.arena, self.row, self.place = arena, row, row
        self.shared = shared
        self.max_context = limits.max_context
        self.alternatives_end = limits.alternatives_end
        self.attention_block = limits.attention_block
        self.prefill_chunk = PREFILL_CHUNK
        self.engine_seconds = 0.0
        self._ragged_end = 0
        self._rope = rope
        self._vocab_size = limits.vocab_size
        self._verify = self._port(target.verify)
        self._single = self._verify
        """Port of the engine for passes of one token."""
        if target.step is not None:
            padding = graph_io.STEP_PADDING
            self._single = EnginePort(target.step, arena, row, rope, max_query_length=1, vocab_size=self._vocab_size, padding=padding)
        self._draft: EnginePort | None = None
        if draft is not None:
            self.use_draft(draft)

    def touch(self, length: int) -> None:
        """Writes into the first entries of the KV cache; see `backends.base.Slot`."""
        self.arena.touch(self.row, length)
        self._ragged_end = max(self._ragged_end, length)

    def take_over(self, other: OrtSlot, length: int) -> None:
        """Copies the first `length` entries of another slot's KV cache, and its `engine_seconds`."""
        self.arena.copy(other.row, self.row, length)
        self._ragged_end = max(self._ragged_end, length)
        self.engine_seconds = other.engine_seconds

    def read_kv(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Fills blocks from entries of the KV cache; see `backends.base.Slot`."""
        for at, block, stop in self._places(start, blocks):
            self.arena.read_block(self.row, at, stop, block)

    def write_kv(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Writes blocks to entries of the KV cache; see `backends.base.Slot`."""
        for at, block, stop in self._places(start, blocks):
            self._ragged_end = max(self._ragged_end, stop)
            self.arena.write_block(self.row, at, stop, block)

    def _places(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> Iterator[tuple[int, NDArray[np.uint8], int]]:
        """Yields each block with its first entry, and the one after its last."""
        for block in blocks:
            size = block.nbytes // self.arena.entry_bytes
            self._check_room(start, size)
            yield start, block, start + size
            start += size

    def use_draft(self, draft: DraftEngine) -> None:
        """Replaces the draft engine of this slot; the KV cache stays the same."""
        assert isinstance(draft, ort.InferenceSession)
        self._draft = self._port(draft, last_row_only=True)

    def _port(self, session: ort.InferenceSession, *, last_row_only: bool = False) -> EnginePort:
        return EnginePort(
            session,
            self.arena,
            self.row,
            self._rope,
            max_query_length=graph_io.MAX_QUERY_LENGTH,
            vocab_size=self._vocab_size,
            last_row_only=last_row_only,
        )

    def trim(self, *, everything: bool = False) -> None:
        """Gives most of the KV cache's memory back after a long sequence, or all; its content is lost."""
        used = max(self._ragged_end, *(port.last_length for port in self.ports()))
        self.arena.trim(self.row, used, reserve=0 if everything else RESERVE)
        self._ragged_end = 0

    def add_pass(self, wanted: Pass, seconds: float) -> None:
        """Counts a pass that this sequence shared with others, and the time that it took."""
        self._ragged_end = max(self._ragged_end, wanted.start + len(wanted.trunk) + len(wanted.branches) + graph_io.STEP_PADDING)
        self.engine_seconds += seconds

    def abandon(self, refusal: BackendUnavailableError) -> list[ort.InferenceSession]:
        """Makes every later pass raise this error; returns the sessions."""
        return [port.abandon(refusal) for port in self.ports()]

    def ports(self) -> list[EnginePort]:
        """Returns the ports of this slot's engines."""
        return [port for port in (self._verify, self._single, self._draft) if port is not None]

    def preserved(self, start: int, stop: int) -> contextlib.AbstractContextManager[None]:
        """Returns a context manager that restores the KV-cache entries `[start, stop)` at its end.

        Only the entries of the draft's own layers are restored: drafting writes no others.
        """
        assert self._draft is not None, "this slot has no draft engine"
        return self.arena.preserved(self.row, self._draft.session, start, min(stop, self.max_context))

    def prefill(self, ids: Sequence[int]) -> StepOutput:
        """Returns the output after a prompt's last token (N = 1); see `backends.base.Slot`."""
        self._check_room(0, len(ids))
        for wanted in prefill_passes(ids, self.prefill_chunk, self.attention_block):
            output = self.run(wanted)
        return output

    def forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """Returns the outputs at `positions` of one pass of the whole model; see `backends.base.Slot`."""
        return self._run_any_length(self._verify if len(ids) > 1 else self._single, ids, start, positions)

    def draft_forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """Returns the same as `forward`, from the draft engine."""
        assert self._draft is not None, "this slot has no draft engine"
        return self._run_any_length(self._draft, ids, start, positions)

    def run(self, wanted: Pass) -> StepOutput:
        """Returns the output of a pass that a sequence asks for.

        Raises:
            ValueError: if the pass has no tokens, or exceeds the context or `MAX_QUERY_LENGTH`.
        """
        # Decoding spends most of its own time here and in `EnginePort.run`, so both make few calls.
        kind, trunk, start, branches = wanted
        if kind == "prefill":
            return self.forward(trunk, start, (len(trunk) - 1,))
        query_length = len(trunk) + len(branches)
        if start < 0 or query_length < 1 or start + query_length > self.max_context:
            self._check_room(start, query_length)
        port = self._draft if kind == "draft" else self._verify if query_length > 1 else self._single
        assert port is not None, "this slot has no draft engine"
        output, seconds = port.run(trunk, start, branches)
        self.engine_seconds += seconds
        return output

    def verify(self, ids: Sequence[int], start: int, branches: Sequence[Alternative] = ()) -> StepOutput:
        """Returns a row for each token of one pass of the whole model; see `backends.base.Slot`."""
        return self.run(Pass("verify", ids, start, branches))

    def draft(self, ids: Sequence[int], start: int) -> StepOutput:
        """Returns the output after the last of some tokens (N = 1), from the draft engine."""
        return self.run(Pass("draft", ids, start))

    def _run_any_length(self, port: EnginePort, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        self._check_room(start, len(ids))
        output, seconds = port.run_any_length(ids, start, positions)
        self.engine_seconds += seconds
        return output

    def check(self, wanted: Pass) -> None:
        """Raises ValueError if a pass has no tokens, exceeds the context or `MAX_QUERY_LENGTH`."""
        query_length = len(wanted.trunk) + len(wanted.branches)
        self._check_room(wanted.start, query_length)
        most = self.prefill_chunk if wanted.kind == "prefill" else graph_io.MAX_QUERY_LENGTH
        if query_length > most:
            raise ValueError(f"a {wanted.kind} pass of {query_length} tokens is longer than {most}")

    def _check_room(self, start: int, query_length: int) -> None:
        # The kernels do not check this: past the end they would write into other memory.
        stop = start + query_length
        if start < 0 or query_length < 1 or stop > self.max_context:
            raise ValueError(f"positions [{start}, {stop}) are empty or outside the context of {self.max_context} tokens")
