"""The KV caches of several sequences, one row each: bound to sessions as past and, in place, as present."""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.backends.device import Device, HostMemory

RESERVE: Final = 16 * 2**20
"""Bytes of written memory that an idle row keeps, for the next request to find in place."""


@dataclass(frozen=True, slots=True)
class _Buffer:
    """The place of one `past.*` input in the arena: `dtype[rows, heads, capacity, head_dim]`."""

    offset: int
    heads: int
    head_dim: int


class KvArena:
    """One buffer `dtype[rows, kv_heads, capacity, head_dim]` per `past.*` input of the verify session.

    Attributes:
        rows: number of sequences.
        capacity: number of KV-cache entries of each.
        entry_bytes: size of one entry of a row, in all buffers together.
    """

    def __init__(self, session: ort.InferenceSession, device: Device, dtype: np.dtype[Any], *, rows: int, capacity: int) -> None:
        """Reserves the memory of all rows, each with at least `capacity` entries.

        Raises:
            BackendUnavailableError: if there is not enough memory.
        """
        self._device, self._dtype = device, dtype
        shapes = {value.name: value.shape for value in session.get_inputs() if _is_past(value.name)}
        # Each row of a buffer is a number of whole pages, so that `trim` can give them back.
        per_page = (mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, shape[3] * dtype.itemsize) for shape in shapes.values())
        multiple = math.lcm(*per_page)
        self.rows, self.capacity = rows, -(-capacity // multiple) * multiple
        self._buffers: dict[str, _Buffer] = {}
        end = 0
        for name, (_, heads, _, head_dim) in shapes.items():
            self._buffers[name] = _Buffer(end, heads, head_dim)
            end += rows * self._row_bytes(self._buffers[name])
        self.entry_bytes = sum(self._row_bytes(buffer) for buffer in self._buffers.values()) // self.capacity
        self._memory = device.reserve(end, f"the KV caches of {rows} sequences of {capacity} tokens")

    def bind(self, binding: ort.IOBinding, session: ort.InferenceSession, first: int, count: int) -> None:
        """Binds rows `[first, first + count)` to each `past.*` input and its `present.*` output."""
        for value in session.get_inputs():
            if _is_past(value.name):
                buffer = self._buffers[value.name]
                address = self._memory.address + buffer.offset + first * self._row_bytes(buffer)
                shape = [count, buffer.heads, self.capacity, buffer.head_dim]
                present = graph_io.PRESENT_PREFIX + value.name.removeprefix(graph_io.PAST_PREFIX)
                binding.bind_input(value.name, self._device.name, 0, self._dtype.type, shape, address)
                binding.bind_output(present, self._device.name, 0, self._dtype.type, shape, address)

    def trim(self, row: int, used: int, *, reserve: int = RESERVE) -> None:
        """Gives a row's memory back to the system if more than `reserve` was used; the content is lost then.

        Args:
            row: index of the row.
            used: number of entries that may have been written.
            reserve: bytes of written memory that may stay in place.
        """
        if used * self.entry_bytes > reserve:
            for buffer in self._buffers.values():
                size = self._row_bytes(buffer)
                self._device.give_back(self._memory, buffer.offset + row * size, size)

    def read(self, row: int, name: str, start: int, stop: int) -> NDArray[Any]:
        """Returns a copy of a row's entries `[start, stop)` of an input: dtype[kv_heads, n, head_dim]."""
        buffer = self._buffers[name]
        content = np.empty((buffer.heads, (stop - start) * buffer.head_dim), dtype=self._dtype)
        self._device.download(self._memory, self._entry_offset(buffer, row, start), content, self._pitch(buffer))
        return content.reshape(buffer.heads, stop - start, buffer.head_dim)

    def write(self, row: int, name: str, start: int, content: NDArray[Any]) -> None:
        """Writes what `read` returned."""
        buffer = self._buffers[name]
        flat = content.reshape(buffer.heads, -1)
        self._device.upload(self._memory, self._entry_offset(buffer, row, start), flat, self._pitch(buffer))

    def read_block(self, row: int, start: int, stop: int, block: NDArray[np.uint8]) -> None:
        """Fills a contiguous array of (stop - start) * `entry_bytes` from a row's entries `[start, stop)`."""
        for entries, part in self._parts(row, start, stop, block):
            part[...] = entries

    def write_block(self, row: int, start: int, stop: int, block: NDArray[np.uint8]) -> None:
        """Writes what `read_block` filled."""
        for entries, part in self._parts(row, start, stop, block):
            entries[...] = part

    def _parts(self, row: int, start: int, stop: int, block: NDArray[np.uint8]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Yields a row's entries, and the parts of a block for them: dtype[buffers, kv_heads, n, head_dim].

        Buffers of equal shape lie one behind the other; they are copied together, which is much faster.
        """
        assert isinstance(self._memory, HostMemory)
        at = 0
        for (heads, head_dim), group in itertools.groupby(self._buffers.values(), key=lambda one: (one.heads, one.head_dim)):
            buffers = list(group)
            size, first = self._row_bytes(buffers[0]), buffers[0].offset
            end = first + len(buffers) * self.rows * size
            rows = self._memory.block[first:end].view(self._dtype).reshape(len(buffers), self.rows, heads, self.capacity, head_dim)
            shape = (len(buffers), heads, stop - start, head_dim)
            nbytes = math.prod(shape) * self._dtype.itemsize
            yield rows[:, row, :, start:stop], block[at : at + nbytes].view(self._dtype).reshape(shape)
            at += nbytes

    def copy(self, source: int, row: int, stop: int) -> None:
        """Copies the entries `[0, stop)` of one row to another one."""
        for name in self._buffers if stop else ():
            self.write(row, name, 0, self.read(source, name, 0, stop))

    def touch(self, row: int, stop: int) -> None:
        """Writes zeros into a row's entries `[0, stop)`."""
        for name, buffer in self._buffers.items():
            self.write(row, name, 0, np.zeros((buffer.heads, stop, buffer.head_dim), dtype=self._dtype))

    @contextlib.contextmanager
    def preserved(self, row: int, session: ort.InferenceSession, start: int, stop: int) -> Iterator[None]:
        """When the block ends, restores a row's entries `[start, stop)` of the layers that a session uses."""
        kept = {v.name: self.read(row, v.name, start, stop) for v in session.get_inputs() if _is_past(v.name)}
        try:
            yield
        finally:
            for name, content in kept.items():
                self.write(row, name, start, content)

    def _pitch(self, buffer: _Buffer) -> int:
        return self.capacity * buffer.head_dim * self._dtype.itemsize

    def _row_bytes(self, buffer: _Buffer) -> int:
        return math.prod((buffer.heads, self.capacity, buffer.head_dim)) * self._dtype.itemsize

    def _entry_offset(self, buffer: _Buffer, row: int, entry: int) -> int:
        return buffer.offset + row * self._row_bytes(buffer) + entry * buffer.head_dim * self._dtype.itemsize


def bind_input(binding: ort.IOBinding, name: str, buffer: NDArray[np.generic]) -> None:
    """Binds an input to an array's own memory, which must outlive the binding's runs."""
    binding.bind_input(name, "cpu", 0, buffer.dtype.type, list(buffer.shape), buffer.ctypes.data)


def bind_output(binding: ort.IOBinding, name: str, buffer: NDArray[np.generic]) -> None:
    """Binds an output to an array's own memory, which must outlive the binding's runs."""
    binding.bind_output(name, "cpu", 0, buffer.dtype.type, list(buffer.shape), buffer.ctypes.data)


def _is_past(name: str) -> bool:
    return name.startswith(graph_io.PAST_PREFIX)
