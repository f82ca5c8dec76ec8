"""One sequence's KV cache in a device's memory, and its passes (see `backends.base.Slot`)."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.backends.base import PREFILL_CHUNK, DraftEngine, Pass, StepOutput, prefill_passes
from ssruntime.backends.device import Device, Memory
from ssruntime.backends.device_engines.engine import ALIGNMENT, Engine, TensorInfo
from ssruntime.backends.device_engines.port import MAX_KEPT, DevicePort, cache_names
from ssruntime.backends.device_engines.weights import DeviceWeights
from ssruntime.errors import BackendUnavailableError
from ssruntime.proposal import Alternative


@dataclass(slots=True, kw_only=True)
class SharedEngines:
    """What all slots of a backend use; one pass runs at a time.

    Attributes:
        verify: engine of the whole model.
        draft: the backend's own draft.
        weights: weights and RoPE tables of both.
        device: device of the engines.
        workspace: memory for intermediate values, which no two passes need at a time.
        lock: held during a pass.
        max_context: largest number of tokens in a sequence.
        alternatives_end: as in `Slot`.
        capacity: number of entries of a KV cache.
        vocab_size: number of tokens in the vocabulary.
        kv_entry_bytes: size of one entry of a KV cache, in all layers together.
        process: number of the process that opened the engines; a forked one cannot use them.
    """

    verify: Engine
    draft: Engine | None
    weights: DeviceWeights
    device: Device
    workspace: Memory
    lock: threading.Lock
    max_context: int
    alternatives_end: int
    capacity: int
    vocab_size: int
    kv_entry_bytes: int
    process: int = field(default_factory=os.getpid)


class DeviceSlot:
    """The KV cache of one sequence, and contexts of the engines over it. Used by one thread at a time."""

    def __init__(self, engines: SharedEngines, draft: Engine | None, max_context: int) -> None:
        """Reserves the KV cache.

        Raises:
            BackendUnavailableError: if the device lacks memory.
        """
        self.max_context = min(max_context, engines.max_context)
        self.alternatives_end = min(self.max_context, engines.alternatives_end)
        self.attention_block = 1
        self.prefill_chunk = PREFILL_CHUNK
        self.place = 0
        self.engine_seconds = 0.0
        self._engines = engines
        self._buffers = {name: engines.verify.inputs[name] for name in cache_names(engines.verify)}
        self._offsets, end = {}, 0
        for name, info in self._buffers.items():
            self._offsets[name] = end
            end += -(-_nbytes(info) // ALIGNMENT) * ALIGNMENT
        self._memory: Memory = engines.device.reserve(end, "the KV cache of a sequence")
        self._addresses: Mapping[str, int] = {name: self._memory.address + at for name, at in self._offsets.items()}
        self._verify = self._make_port(engines.verify)
        self._draft = None if draft is None else self._make_port(draft)

    def run(self, wanted: Pass) -> StepOutput:
        """Returns the output of a pass that a sequence asks for; see `backends.base.Slot`."""
        kind, trunk, start, branches = wanted
        length = len(trunk) + len(branches)
        most = self.prefill_chunk if kind == "prefill" else graph_io.MAX_QUERY_LENGTH
        self._check(start, length, most)
        port = self._port(draft=kind == "draft")
        return self._run(port, trunk, start, branches, range(length) if kind == "verify" else (length - 1,))

    def prefill(self, ids: Sequence[int]) -> StepOutput:
        """Returns the output after a prompt's last token (N = 1); see `backends.base.Slot`."""
        self._check(0, len(ids), self.max_context)
        for wanted in prefill_passes(ids, self.prefill_chunk, self.attention_block):
            output = self.run(wanted)
        return output

    def forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """Returns the outputs at `positions` of a pass of the whole model; see `backends.base.Slot`."""
        return self._forward(self._port(draft=False), ids, start, positions)

    def verify(self, ids: Sequence[int], start: int, branches: Sequence[Alternative] = ()) -> StepOutput:
        """Returns a row for each token of one pass of the whole model; see `backends.base.Slot`."""
        return self.run(Pass("verify", ids, start, branches))

    def draft(self, ids: Sequence[int], start: int) -> StepOutput:
        """Returns the output after the last of some tokens (N = 1), from the draft engine."""
        return self.run(Pass("draft", ids, start))

    def draft_forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """Returns the same as `forward`, from the draft engine."""
        return self._forward(self._port(draft=True), ids, start, positions)

    def touch(self, length: int) -> None:
        """Does nothing: a device gives its memory at once."""

    def trim(self, *, everything: bool = False) -> None:
        """Does nothing: a device's memory belongs to the slot."""

    def use_draft(self, draft: DraftEngine) -> None:
        """Replaces the draft engine of this slot; the KV cache stays the same."""
        self._draft = self._make_port(cast("Engine", draft))

    @contextlib.contextmanager
    def preserved(self, start: int, stop: int) -> Iterator[None]:
        """When the block ends, restores the entries `[start, stop)` of the draft's layers."""
        port, stop = self._port(draft=True), min(stop, self.max_context)
        kept = {name: self.read(name, start, stop) for name in cache_names(port.engine)}
        try:
            yield
        finally:
            for name, content in kept.items():
                self.write(name, start, content)

    def read_kv(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Fills blocks from entries of the KV cache; see `backends.base.Slot`."""
        with self._engines.lock:  # nothing may come between the nodes of a pass that is being captured
            for name, parts, size in self._parts(start, blocks):
                content = self.read(name, start, start + len(parts) * size)
                for number, part in enumerate(parts):
                    part[...] = content[:, number * size : (number + 1) * size]

    def write_kv(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Writes blocks to entries of the KV cache; see `backends.base.Slot`."""
        with self._engines.lock:
            for name, parts, _ in self._parts(start, blocks):
                self.write(name, start, np.concatenate(parts, axis=1))

    def _parts(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> Iterator[tuple[str, list[NDArray[Any]], int]]:
        """Yields each input with its part of every block, dtype[kv_heads, n, head_dim], and n."""
        if not blocks:
            return
        size = blocks[0].nbytes // self._engines.kv_entry_bytes
        self._check(start, len(blocks) * size, self.max_context)
        at = 0
        for name, info in self._buffers.items():
            shape = (info.shape[1], size, info.shape[3])
            end = at + math.prod(shape) * info.dtype.itemsize
            yield name, [block[at:end].view(info.dtype).reshape(shape) for block in blocks], size
            at = end

    def write(self, name: str, start: int, content: NDArray[Any]) -> None:
        """Writes what `read` returned."""
        info, offset, pitch = self._entries(name, start)
        self._engines.device.upload(self._memory, offset, content.reshape(info.shape[1], -1), pitch)

    def read(self, name: str, start: int, stop: int) -> np.ndarray[Any, np.dtype[Any]]:
        """Returns a copy of the entries `[start, stop)` of an input: dtype[kv_heads, n, head_dim]."""
        info, offset, pitch = self._entries(name, start)
        _, heads, _, head_dim = info.shape
        content = np.empty((heads, (stop - start) * head_dim), dtype=info.dtype)
        self._engines.device.download(self._memory, offset, content, pitch)
        return content.reshape(heads, stop - start, head_dim)

    def _entries(self, name: str, start: int) -> tuple[TensorInfo, int, int]:
        """Returns an input, the offset of an entry of its first head, and the bytes from head to head."""
        info = self._buffers[name]
        _, _, capacity, head_dim = info.shape
        size = head_dim * info.dtype.itemsize
        return info, self._offsets[name] + start * size, capacity * size

    def _forward(self, port: DevicePort, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """Runs tokens in as many passes as they need, and some of these again: a pass keeps few logits."""
        self._check(start, len(ids), self.max_context)
        if not positions:
            self._check(start, 0, self.max_context)
        rows: dict[int, StepOutput] = {}
        for first in range(0, len(ids), PREFILL_CHUNK):
            part = ids[first : first + PREFILL_CHUNK]
            inside = sorted({p - first for p in positions if first <= p < first + len(part)})
            for at in range(0, max(1, len(inside)), MAX_KEPT):
                kept = inside[at : at + MAX_KEPT] or [0]
                output = self._run(port, part, start + first, (), kept)
                rows.update({first + p: _copied(output, row) for row, p in enumerate(kept)})
        chosen = [rows[p] for p in positions]
        return StepOutput(
            tokens=np.concatenate([o.tokens for o in chosen]),
            confidence=np.concatenate([o.confidence for o in chosen]),
            top_tokens=np.concatenate([o.top_tokens for o in chosen]),
            top_logits=np.concatenate([o.top_logits for o in chosen]),
            logits=np.concatenate([o.logits for o in chosen]),
        )

    def _run(self, port: DevicePort, trunk: Sequence[int], start: int, branches: Sequence[Alternative], kept: Sequence[int]) -> StepOutput:
        if os.getpid() != self._engines.process:
            raise BackendUnavailableError(
                "this engine was loaded before the process forked, and cannot run in the child", "load it in each worker, after the fork"
            )
        with self._engines.lock:
            output, seconds = port.run(trunk, start, branches, kept)
        self.engine_seconds += seconds
        return output

    def _make_port(self, engine: Engine) -> DevicePort:
        shared = self._engines
        return DevicePort(
            engine,
            shared.weights.addresses(engine.inputs),
            self._addresses,
            shared.device,
            vocab_size=shared.vocab_size,
            capacity=shared.capacity,
            workspace=shared.workspace.address,
        )

    def _port(self, *, draft: bool) -> DevicePort:
        if not draft:
            return self._verify
        assert self._draft is not None, "this slot has no draft engine"
        return self._draft

    def _check(self, start: int, length: int, most: int) -> None:
        stop = start + length
        if start < 0 or length < 1 or stop > self.max_context:
            raise ValueError(f"positions [{start}, {stop}) are empty or outside the context of {self.max_context} tokens")
        if length > most:
            raise ValueError(f"a pass of {length} tokens is longer than the {most} that this engine has buffers for")


def _copied(output: StepOutput, row: int) -> StepOutput:
    chosen = slice(row, row + 1)
    return StepOutput(
        tokens=output.tokens[chosen].copy(),
        confidence=output.confidence[chosen].copy(),
        top_tokens=output.top_tokens[chosen].copy(),
        top_logits=output.top_logits[chosen].copy(),
        logits=output.logits[chosen].copy(),
    )


def _nbytes(info: TensorInfo) -> int:
    return int(np.prod(info.shape)) * info.dtype.itemsize
