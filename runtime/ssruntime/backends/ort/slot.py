"""One sequence on the CPU: its KV cache and small buffers, bound to the verify session and a draft session."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

import onnxruntime as ort

from ssruntime import graph_io
from ssruntime.backends.base import StepOutput
from ssruntime.backends.ort.engine_port import EnginePort
from ssruntime.backends.ort.kv_cache import KvCache
from ssruntime.proposal import Alternative

PREFILL_CHUNK: Final = 256
"""Most prompt tokens in one pass: enough to use the cores fully, few enough to keep activations small."""


class OrtSlot:
    """One sequence's cache and small buffers, bound to both sessions. Used by one thread at a time (see `backends.base.Slot`)."""

    def __init__(
        self,
        verify: ort.InferenceSession,
        draft: ort.InferenceSession | None,
        *,
        max_context: int,
        alternatives_end: int,
        vocab_size: int,
    ) -> None:
        self.max_context = max_context
        self.alternatives_end = alternatives_end
        self.engine_seconds = 0.0
        self._cache = KvCache(verify, max_context)
        self._verify = EnginePort(verify, self._cache, graph_io.MAX_QUERY_LENGTH, vocab_size)
        self._vocab_size = vocab_size
        self._draft: EnginePort | None = None
        if draft is not None:
            self.use_draft(draft)

    def use_draft(self, draft: ort.InferenceSession) -> None:
        """Drafts with another engine from here on, over the same cache."""
        self._draft = EnginePort(draft, self._cache, 1, self._vocab_size)

    def preserved(self, start: int, stop: int) -> contextlib.AbstractContextManager[None]:
        """Undoes what drafting writes to the cache at `[start, stop)` when the block ends."""
        assert self._draft is not None, "this slot was made without a draft"
        return self._cache.preserved(self._draft.session, start, min(stop, self.max_context))

    def prefill(self, ids: Sequence[int]) -> StepOutput:
        """Runs a prompt through the verify engine in chunks from position 0; gives the last position."""
        for start in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[start : start + PREFILL_CHUNK]
            output = self.forward(chunk, start, (len(chunk) - 1,))
        return output

    def forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """Runs `ids` in one pass of the verify engine, of any width; gives the positions named."""
        return self._run_any_length(self._verify, ids, start, positions)

    def draft_forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """As `forward`, through the draft engine."""
        assert self._draft is not None, "this slot was made without a draft"
        return self._run_any_length(self._draft, ids, start, positions)

    def verify(self, ids: Sequence[int], start: int, alternatives: Sequence[Alternative] = ()) -> StepOutput:
        """Runs up to `MAX_QUERY_LENGTH` tokens in one pass of the verify engine; gives a row for each (see `backends.base.Slot`)."""
        self._check_room(start, len(ids) + len(alternatives))
        if alternatives and start == 0:
            # The kernels count the positions of a first pass themselves, and would turn an alternative by another place's angles.
            raise ValueError("alternatives need at least one token before the pass")
        output, seconds = self._verify.run(ids, start, alternatives)
        self.engine_seconds += seconds
        return output

    def copy_kv(self, source: int, target: int) -> None:
        """Gives position `target` of the cache the keys and values of `source`."""
        self._cache.copy_kv(source, target)

    def draft(self, token: int, position: int) -> StepOutput:
        """Runs one token through the draft engine."""
        assert self._draft is not None, "this slot was made without a draft"
        self._check_room(position, 1)
        output, seconds = self._draft.run((token,), position)
        self.engine_seconds += seconds
        return output

    def _run_any_length(self, port: EnginePort, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        self._check_room(start, len(ids))
        output, seconds = port.run_any_length(ids, start, positions)
        self.engine_seconds += seconds
        return output

    def _check_room(self, start: int, width: int) -> None:
        # The kernels do not check: past the end they would write into other memory.
        if start < 0 or width < 1 or start + width > self.max_context:
            raise ValueError(f"positions {start} to {start + width} lie outside the context of {self.max_context}")
