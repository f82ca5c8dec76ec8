"""One sequence's slot: its KV cache and small buffers, bound to the sessions of the engines."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.backends.base import Pass, StepOutput, prefill_passes
from ssruntime.backends.ort.engine_port import EnginePort
from ssruntime.backends.ort.kv_cache import KvCache
from ssruntime.errors import BackendUnavailableError
from ssruntime.proposal import Alternative

PREFILL_CHUNK: Final = 256
"""Most prompt tokens in one pass: enough to use all cores, few enough to keep the activations small."""


class TargetSessions(NamedTuple):
    """The sessions of the whole model (see `ssruntime.graph_io`).

    Attributes:
        verify: session for passes of any query length.
        step: session for passes of one token; None if they need not have the bits of wider passes.
    """

    verify: ort.InferenceSession
    step: ort.InferenceSession | None


class OrtSlot:
    """One sequence's KV cache and small buffers, bound to all sessions (see `backends.base.Slot`).

    Used by one thread at a time.
    """

    def __init__(
        self,
        target: TargetSessions,
        draft: ort.InferenceSession | None,
        rope: Mapping[str, NDArray[np.float32]],
        *,
        max_context: int,
        alternatives_end: int,
        attention_block: int,
        vocab_size: int,
    ) -> None:
        self.max_context = max_context
        self.alternatives_end = alternatives_end
        self.attention_block = attention_block
        self.prefill_chunk = PREFILL_CHUNK
        self.engine_seconds = 0.0
        self._cache = KvCache(target.verify, max_context + graph_io.STEP_PADDING)
        self._rope = rope
        self._vocab_size = vocab_size
        longest = graph_io.MAX_QUERY_LENGTH
        self._verify = EnginePort(target.verify, self._cache, rope, max_query_length=longest, vocab_size=vocab_size)
        self._single = self._verify
        """Port of the engine for passes of one token."""
        if target.step is not None:
            padding = graph_io.STEP_PADDING
            self._single = EnginePort(target.step, self._cache, rope, max_query_length=1, vocab_size=vocab_size, padding=padding)
        self._draft: EnginePort | None = None
        if draft is not None:
            self.use_draft(draft)

    def use_draft(self, draft: ort.InferenceSession) -> None:
        """Replaces the draft engine of this slot; the KV cache stays the same."""
        self._draft = EnginePort(
            draft,
            self._cache,
            self._rope,
            max_query_length=graph_io.MAX_QUERY_LENGTH,
            vocab_size=self._vocab_size,
            last_row_only=True,
        )

    def trim(self) -> None:
        """Gives most of the KV cache's memory back after a long sequence; its content is lost."""
        self._cache.trim(max(port.last_length for port in self.ports()))

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
        return self._cache.preserved(self._draft.session, start, min(stop, self.max_context))

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
            ValueError: if the pass has no tokens, exceeds the context or `MAX_QUERY_LENGTH`, or has branches
                at `start` 0.
        """
        # Decoding spends most of its own time here and in `EnginePort.run`, so both make few calls.
        kind, trunk, start, branches = wanted
        if kind == "prefill":
            return self.forward(trunk, start, (len(trunk) - 1,))
        query_length = len(trunk) + len(branches)
        if start < 0 or query_length < 1 or start + query_length > self.max_context:
            self._check_room(start, query_length)
        if branches and start == 0:
            # Without past tokens, the kernels ignore `position_ids` and apply RoPE by row number, which is
            # wrong for branches.
            raise ValueError("branches need at least one token before the pass, but it starts at position 0")
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

    def _check_room(self, start: int, query_length: int) -> None:
        # The kernels do not check this: past the end they would write into other memory.
        stop = start + query_length
        if start < 0 or query_length < 1 or stop > self.max_context:
            raise ValueError(f"positions [{start}, {stop}) are empty or outside the context of {self.max_context} tokens")
