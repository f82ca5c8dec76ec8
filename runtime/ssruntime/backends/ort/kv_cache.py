"""One sequence's KV cache: one block of memory, bound to every session as past and, in place, as present."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterator
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io

RESERVE: Final = 16 * 2**20
"""Bytes of written memory that an idle cache keeps, for the next request to find in place."""


class KvCache:
    """Buffers `float32[1, kv_heads, capacity, head_dim]`, one per `past.*` input of the verify session."""

    def __init__(self, session: ort.InferenceSession, capacity: int) -> None:
        shapes = {v.name: (1, v.shape[1], capacity, v.shape[3]) for v in session.get_inputs() if _is_past(v.name)}
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        total = sum(sizes.values())
        self._memory = _reserve(total)
        block = np.zeros(total, dtype=np.float32) if self._memory is None else np.frombuffer(self._memory, dtype=np.float32)
        self._bytes_per_entry = block.nbytes // capacity
        self._buffers: dict[str, NDArray[np.float32]] = {}
        at = 0
        for name, shape in shapes.items():
            self._buffers[name] = block[at : at + sizes[name]].reshape(shape)
            at += sizes[name]

    def bind(self, binding: ort.IOBinding, session: ort.InferenceSession) -> None:
        """Binds each `past.*` input of a session and, in place, its `present.*` output to the same buffer."""
        for value in session.get_inputs():
            if _is_past(value.name):
                buffer = self._buffers[value.name]
                bind_input(binding, value.name, buffer)
                bind_output(binding, graph_io.PRESENT_PREFIX + value.name.removeprefix(graph_io.PAST_PREFIX), buffer)

    def trim(self, used: int) -> None:
        """Gives the memory back to the system if more than `RESERVE` was used; the content is lost then.

        Args:
            used: number of entries that may have been written.
        """
        if used * self._bytes_per_entry > RESERVE and self._memory is not None and hasattr(mmap, "MADV_DONTNEED"):
            with contextlib.suppress(OSError):
                self._memory.madvise(mmap.MADV_DONTNEED)

    @contextlib.contextmanager
    def preserved(self, session: ort.InferenceSession, start: int, stop: int) -> Iterator[None]:
        """When the block ends, restores the entries `[start, stop)` of the layers that the session uses."""
        views = [self._buffers[v.name][:, :, start:stop] for v in session.get_inputs() if _is_past(v.name)]
        kept = [view.copy() for view in views]
        try:
            yield
        finally:
            for view, content in zip(views, kept, strict=True):
                view[...] = content


def bind_input(binding: ort.IOBinding, name: str, buffer: NDArray[np.generic]) -> None:
    """Binds an input to an array's own memory, which must outlive the binding's runs."""
    binding.bind_input(name, "cpu", 0, buffer.dtype.type, list(buffer.shape), buffer.ctypes.data)


def bind_output(binding: ort.IOBinding, name: str, buffer: NDArray[np.generic]) -> None:
    """Binds an output to an array's own memory, which must outlive the binding's runs."""
    binding.bind_output(name, "cpu", 0, buffer.dtype.type, list(buffer.shape), buffer.ctypes.data)


def _is_past(name: str) -> bool:
    return name.startswith(graph_io.PAST_PREFIX)


def _reserve(count: int) -> mmap.mmap | None:
    """Returns zeroed memory for so many float32; its pages take no physical memory until they are written.

    None if there is none to reserve, or on Windows, where large arrays take memory in the same way.
    """
    if count == 0 or not hasattr(mmap, "MAP_ANONYMOUS"):
        return None
    memory = mmap.mmap(-1, 4 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # The first write to a huge page would commit all of its memory, for hardly any gain in speed.
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
