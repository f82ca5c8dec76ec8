"""One engine's passes: a block of small inputs to upload, and a block of small outputs to read back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.backends.base import PREFILL_CHUNK, StepOutput
from ssruntime.backends.device import Device, HostDevice
from ssruntime.backends.device_engines.device_logits import DeviceLogits, as_array
from ssruntime.backends.device_engines.engine import ALIGNMENT, Engine, TensorInfo, profiles_for
from ssruntime.proposal import Alternative, branch_rows

MAX_KEPT: Final = graph_io.MAX_QUERY_LENGTH
"""Most logits to keep in a pass."""
_LONG: Final = 8
_INT: Final = 4


class DevicePort:
    """A context of one engine for one sequence, with buffers. Runs under the backend's lock."""

    def __init__(
        self,
        engine: Engine,
        constants: Mapping[str, int],
        cache: Mapping[str, int],
        device: Device,
        *,
        vocab_size: int,
        capacity: int,
        workspace: int,
    ) -> None:
        """Makes the context and the buffers.

        Args:
            engine: open engine.
            constants: addresses of weights and RoPE tables by input name.
            cache: addresses of the sequence's KV cache by the names of the `past.*` inputs.
            device: device of the engine.
            vocab_size: number of tokens in the vocabulary.
            capacity: number of entries of the KV cache.
            workspace: address of memory for intermediate values.
        """
        self.engine = engine
        self._context = engine.context(workspace)
        self._device = device
        self._vocab_size = vocab_size
        self._num_top = min(graph_io.MAX_TOP_TOKENS, vocab_size)
        self._inputs = _Block(device, _SMALL, "the inputs of a pass")
        longs = (graph_io.INPUT_IDS, graph_io.POSITION_IDS, graph_io.LOGITS_INDEX, graph_io.WRITE_INDICES)
        self._ids, self._positions, self._index, self._start = (self._inputs.array(name).view(np.int64) for name in longs)
        self._last_entry = self._inputs.array(graph_io.SEQLENS_K).view(np.int32)
        # In the process's own memory on every device, and constant: a captured graph could not follow it.
        self._total = HostDevice().reserve(_INT, "a length")
        self._total.block[:_INT] = np.array([capacity], dtype=np.int32).view(np.uint8)
        outputs = {name: MAX_KEPT * size for name, size in self._small_outputs().items()}
        self._outputs = _Block(device, outputs, "the outputs of a pass")
        self._logits = device.reserve(4 * MAX_KEPT * vocab_size, "the logits of a pass")
        self._mask_info: TensorInfo | None = engine.inputs.get(graph_io.TREE_MASK)
        if self._mask_info is not None:
            self._mask = device.reserve(PREFILL_CHUNK**2 * self._mask_info.dtype.itemsize, "the tree mask")
        self._fixed = {**constants, **cache}
        for past, address in cache.items():
            self._fixed[graph_io.PRESENT_PREFIX + past.removeprefix(graph_io.PAST_PREFIX)] = address
        self._step_outputs: dict[int, StepOutput] = {}
        self._profiles = profiles_for(capacity)
        self._profile = -1
        self._shape = (0, 0)

    def run(self, trunk: Sequence[int], start: int, branches: Sequence[Alternative], kept: Sequence[int]) -> tuple[StepOutput, float]:
        """Returns the output of one pass, and the seconds spent in it.

        Args:
            trunk: token ids of the pass.
            start: position of the first one.
            branches: side branches of the token tree.
            kept: rows whose output is returned, at most `MAX_KEPT`.
        """
        length = len(trunk) + len(branches)
        self._set_shapes(length, len(kept))
        rows = branch_rows((trunk, branches))
        self._ids[: len(trunk)] = trunk
        self._positions[: len(trunk)] = range(start, start + len(trunk))
        for row, offset, token in rows:
            self._ids[row], self._positions[row] = token, start + offset
        self._index[: len(kept)] = kept
        self._start[0] = start
        self._last_entry[0] = start + length - 1
        begun = time.perf_counter()
        self._inputs.upload()
        if rows:
            self._run_tree(rows, length)
        else:
            self._context.enqueue()
        self._outputs.download()
        seconds = time.perf_counter() - begun
        output = self._step_outputs.get(len(kept))
        if output is None:
            output = self._step_outputs[len(kept)] = self._step_output(len(kept))
        return output, seconds

    def _run_tree(self, rows: Sequence[tuple[int, int, int]], length: int) -> None:
        assert self._mask_info is not None, "this engine takes no token trees"
        values = np.zeros((length, length), dtype=np.float32)
        for row, offset, _ in rows:
            values[row, offset:row] = self._mask_info.hidden
        flat = self._mask_info.encode(values).reshape(1, -1)
        self._device.upload(self._mask, 0, flat, flat.nbytes)
        try:
            self._context.enqueue()
        finally:
            # Also after an exception or an interrupt: what is left would hide tokens in later passes.
            self._device.upload(self._mask, 0, np.zeros_like(flat), flat.nbytes)

    def _set_shapes(self, length: int, kept: int) -> None:
        if (length, kept) == self._shape:
            return
        profile = next(number for number, (first, last) in enumerate(self._profiles) if first <= length <= last)
        if profile != self._profile:
            self._context.use_profile(profile)
            self._profile = profile
            self._bind_all()
        if (length, kept) != self._shape:
            shapes = {
                graph_io.INPUT_IDS: (1, length),
                graph_io.POSITION_IDS: (1, length),
                graph_io.LOGITS_INDEX: (1, kept),
                graph_io.TREE_MASK: (1, 1, length, length),
            }
            for name, shape in shapes.items():
                if name in self.engine.inputs:
                    self._context.set_shape(name, shape)
            self._outputs.resize({name: kept * size for name, size in self._small_outputs().items()})
            self._bind(self._outputs.addresses())
            self._shape = (length, kept)

    def _bind_all(self) -> None:
        self._bind(self._fixed)
        self._bind(self._inputs.addresses())
        self._bind({graph_io.LOGITS: self._logits.address, graph_io.TOTAL_SEQUENCE_LENGTH: self._total.address})
        if self._mask_info is not None:
            self._bind({graph_io.TREE_MASK: self._mask.address})
        self._shape = (0, 0)

    def _bind(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            if name in self.engine.inputs or name in self.engine.outputs:
                self._context.set_address(name, address)

    def _small_outputs(self) -> dict[str, int]:
        """Returns the bytes of each small output for one row."""
        return {
            graph_io.TOKEN: 8,
            graph_io.CONFIDENCE: 4,
            graph_io.TOP_TOKENS: 8 * self._num_top,
            graph_io.TOP_LOGITS: 4 * self._num_top,
        }

    def _step_output(self, kept: int) -> StepOutput:
        content = {name: self._outputs.array(name) for name in self._small_outputs()}
        return StepOutput(
            tokens=content[graph_io.TOKEN].view(np.int64),
            confidence=content[graph_io.CONFIDENCE].view(np.float32),
            top_tokens=content[graph_io.TOP_TOKENS].view(np.int64).reshape(kept, self._num_top),
            top_logits=content[graph_io.TOP_LOGITS].view(np.float32).reshape(kept, self._num_top),
            logits=as_array(DeviceLogits(self._device, self._logits, range(kept), self._vocab_size)),
        )


_SMALL: Final = {
    graph_io.INPUT_IDS: _LONG * PREFILL_CHUNK,
    graph_io.POSITION_IDS: _LONG * PREFILL_CHUNK,
    graph_io.LOGITS_INDEX: _LONG * MAX_KEPT,
    graph_io.WRITE_INDICES: _LONG,
    graph_io.SEQLENS_K: _INT,
}
"""Bytes of the small inputs in the longest pass."""


class _Block:
    """Several arrays in one block of a device's memory, with a copy in the process's own memory."""

    def __init__(self, device: Device, sizes: Mapping[str, int], what: str) -> None:
        self._device = device
        self._places: dict[str, tuple[int, int]] = {}
        most = self._place(sizes)
        self._memory = device.reserve(most, what)
        self._content = np.zeros(most, dtype=np.uint8)
        self._used = most

    def array(self, name: str) -> NDArray[np.uint8]:
        """Returns an array as bytes: to fill before `upload`, or to read after `download`."""
        at, size = self._places[name]
        return self._content[at : at + size]

    def resize(self, sizes: Mapping[str, int]) -> None:
        """Places the arrays anew, none larger than at first."""
        self._used = self._place(sizes)

    def addresses(self) -> dict[str, int]:
        """Returns the address of each array."""
        return {name: self._memory.address + at for name, (at, _) in self._places.items()}

    def upload(self) -> None:
        """Writes all arrays to the device."""
        self._device.upload(self._memory, 0, self._content.reshape(1, -1), self._content.nbytes)

    def download(self) -> None:
        """Reads all arrays from the device; waits for the pass that writes them."""
        self._device.download(self._memory, 0, self._content[: self._used].reshape(1, -1), self._used)

    def _place(self, sizes: Mapping[str, int]) -> int:
        end = 0
        for name, size in sizes.items():
            self._places[name] = (end, size)
            end += -(-size // ALIGNMENT) * ALIGNMENT
        return end


def cache_names(engine: Engine) -> Iterable[str]:
    """Returns the names of an engine's `past.*` inputs."""
    return (name for name in engine.inputs if name.startswith(graph_io.PAST_PREFIX))
