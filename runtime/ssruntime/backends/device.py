"""Memory for the engines of one device: reserved blocks, uploads, and small readbacks."""

from __future__ import annotations

import contextlib
import mmap
import sys
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ssruntime.errors import BackendUnavailableError

_NO_RESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""Flag of memory that need not be available at once; Python before 3.13 has no name for it."""


class Memory(Protocol):
    """A block of a device's memory, which is freed with its last reference."""

    @property
    def address(self) -> int:
        """Address of the first byte."""

    @property
    def nbytes(self) -> int:
        """Number of bytes."""


class Device(Protocol):
    """A kind of memory that engines read and write."""

    name: str
    """As ONNX Runtime calls it: `cpu` or `cuda`."""

    def reserve(self, nbytes: int, what: str) -> Memory:
        """Returns a block of zeros.

        Args:
            nbytes: size of the block.
            what: what it is for, in error messages.

        Raises:
            BackendUnavailableError: if there is not enough memory.
        """

    def upload(self, memory: Memory, offset: int, values: NDArray[np.generic], pitch: int) -> None:
        """Writes an array `[height, width]`, whose rows begin `pitch` bytes apart from `offset` on."""

    def download(self, memory: Memory, offset: int, values: NDArray[np.generic], pitch: int) -> None:
        """Fills an array `[height, width]` from rows that begin `pitch` bytes apart from `offset` on."""

    def give_back(self, memory: Memory, offset: int, nbytes: int) -> None:
        """Gives the physical memory of a part back to the system where it can; its content is lost then."""

    def free_bytes(self) -> int | None:
        """Returns the number of bytes that can be reserved; None where pages are only taken when written."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """A block of the process's own memory.

    Attributes:
        block: its bytes.
        pages: the mapping that the block lies in; None where the system has no such mappings.
    """

    block: NDArray[np.uint8]
    pages: mmap.mmap | None

    @property
    def address(self) -> int:
        """Address of the first byte."""
        return self.block.ctypes.data

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.block.nbytes


class HostDevice:
    """The processor's memory. A block takes physical memory page by page, when it is first written."""

    name = "cpu"

    def reserve(self, nbytes: int, what: str) -> HostMemory:
        """Returns a block of zeros; see `Device`."""
        try:
            if nbytes == 0 or not hasattr(mmap, "MAP_ANONYMOUS"):
                return HostMemory(np.zeros(nbytes, dtype=np.uint8), None)
            pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        except (OSError, OverflowError, ValueError, MemoryError) as err:
            raise BackendUnavailableError(
                f"{what}: {nbytes / 1e9:.1f} GB of memory cannot be reserved: {err}", "lower max_context or max_sequences"
            ) from err
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # The first write to a huge page would commit all of its memory, for hardly any gain in speed.
            with contextlib.suppress(OSError):  # a kernel without huge pages
                pages.madvise(mmap.MADV_NOHUGEPAGE)
        return HostMemory(np.frombuffer(pages, dtype=np.uint8), pages)

    def upload(self, memory: Memory, offset: int, values: NDArray[np.generic], pitch: int) -> None:
        """Writes an array `[height, width]`; see `Device`."""
        _rows(memory, offset, values, pitch)[...] = values.view(np.uint8)

    def download(self, memory: Memory, offset: int, values: NDArray[np.generic], pitch: int) -> None:
        """Fills an array `[height, width]`; see `Device`."""
        values.view(np.uint8)[...] = _rows(memory, offset, values, pitch)

    def give_back(self, memory: Memory, offset: int, nbytes: int) -> None:
        """Gives the whole pages of a part back to the system; see `Device`."""
        assert isinstance(memory, HostMemory)
        if memory.pages is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first, last = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            with contextlib.suppress(OSError):
                memory.pages.madvise(mmap.MADV_DONTNEED, first, last - first)

    def free_bytes(self) -> None:
        """Returns None: a block takes physical memory only where it is written."""
        return None  # noqa: RET501 - what `Device` says


def _rows(memory: Memory, offset: int, values: NDArray[np.generic], pitch: int) -> NDArray[np.uint8]:
    """Returns a view of the rows of a block that an array `[height, width]` is copied from or to."""
    assert isinstance(memory, HostMemory)
    height, width = values.shape[0], values.shape[1] * values.itemsize
    end = offset + (height - 1) * pitch + width
    assert offset >= 0
    assert end <= memory.nbytes
    return np.lib.stride_tricks.as_strided(memory.block[offset:end], (height, width), (pitch, 1))
