"""The memory and the stream of an NVIDIA GPU, through NVIDIA's own bindings of the CUDA runtime."""

from __future__ import annotations

import importlib
import time
import weakref
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.backends.device import Memory
from ssruntime.errors import BackendUnavailableError

_INSTALL: Final = "pip install 'sstool[tensorrt]'"


@dataclass(eq=False)
class CudaMemory:
    """A block of a GPU's memory.

    Attributes:
        address: address of the first byte.
        nbytes: number of bytes.
    """

    address: int
    nbytes: int
    _runtime: Any = field(repr=False)

    def __post_init__(self) -> None:
        weakref.finalize(self, self._runtime.cudaFree, self.address)


class CudaDevice:
    """One GPU, with a stream on which uploads, passes and downloads follow each other.

    Attributes:
        compute_capability: for example `(9, 0)`.
        stream: handle of the stream.
        title: name of the GPU.
    """

    name = "cuda"

    def __init__(self, index: int = 0) -> None:
        """Opens a GPU.

        Raises:
            BackendUnavailableError: if the bindings, the driver or the GPU are missing.
        """
        self._runtime = _load_bindings()
        error, count = self._runtime.cudaGetDeviceCount()
        if int(error) or not count:
            raise BackendUnavailableError(
                f"no NVIDIA GPU can be used: {_error_name(error)}", "check with nvidia-smi that a driver and a GPU are there"
            )
        self._check(self._runtime.cudaSetDevice(index), "choosing the GPU")
        properties = self._check(self._runtime.cudaGetDeviceProperties(index), "reading the GPU's properties")
        self.compute_capability: tuple[int, int] = (properties.major, properties.minor)
        self.title = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        self.stream = int(self._check(self._runtime.cudaStreamCreate(), "making a stream"))

    def free_bytes(self) -> int:
        """Returns the number of free bytes."""
        free, _ = self._check(self._runtime.cudaMemGetInfo(), "reading the free memory")
        return int(free)

    def bandwidth(self) -> float:
        """Returns the bytes that the GPU reads in a second, from copies within its memory."""
        size, turns = 2**30, 8
        first, second = self.reserve(size, "a measurement"), self.reserve(size, "a measurement")
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        begun = 0.0
        for turn in range(turns + 1):
            if turn == 1:
                self._check(self._runtime.cudaStreamSynchronize(self.stream), "a copy")
                begun = time.perf_counter()
            done = self._runtime.cudaMemcpy2DAsync(second.address, size, first.address, size, size, 1, kind, self.stream)
            self._check(done, "a copy")
        self._check(self._runtime.cudaStreamSynchronize(self.stream), "a copy")
        # A copy reads and writes each byte.
        return 2 * turns * size / (time.perf_counter() - begun)

    def reserve(self, nbytes: int, what: str) -> CudaMemory:
        """Returns a block of zeros; see `Device`."""
        size = max(1, nbytes)
        error, address = self._runtime.cudaMalloc(size)
        if int(error):
            free = self.free_bytes()
            raise BackendUnavailableError(
                f"{what}: {nbytes / 1e9:.2f} GB do not fit into the GPU's memory, of which {free / 1e9:.2f} GB are free",
                "lower max_context or max_sequences, or free memory on the GPU",
            )
        memory = CudaMemory(int(address), nbytes, self._runtime)
        self._check(self._runtime.cudaMemsetAsync(memory.address, 0, size, self.stream), "clearing memory")
        return memory

    def upload(self, memory: Memory, offset: int, values: NDArray[np.generic], pitch: int) -> None:
        """Writes an array `[height, width]`; see `Device`."""
        height, width = self._extent(memory, offset, values, pitch)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        source = np.ascontiguousarray(values)
        done = self._runtime.cudaMemcpy2DAsync(memory.address + offset, pitch, source.ctypes.data, width, width, height, kind, self.stream)
        self._check(done, "writing to the GPU")

    def download(self, memory: Memory, offset: int, values: NDArray[np.generic], pitch: int) -> None:
        """Fills an array `[height, width]`, after everything before it on the stream; see `Device`."""
        height, width = self._extent(memory, offset, values, pitch)
        assert values.flags.c_contiguous
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        done = self._runtime.cudaMemcpy2DAsync(values.ctypes.data, width, memory.address + offset, pitch, width, height, kind, self.stream)
        self._check(done, "reading from the GPU")
        self._check(self._runtime.cudaStreamSynchronize(self.stream), "running a pass on the GPU")

    def give_back(self, memory: Memory, offset: int, nbytes: int) -> None:
        """Does nothing: a GPU's memory is freed as a whole."""

    def _extent(self, memory: Memory, offset: int, values: NDArray[np.generic], pitch: int) -> tuple[int, int]:
        height, width = values.shape[0], values.shape[1] * values.itemsize
        assert offset >= 0
        assert offset + (height - 1) * pitch + width <= memory.nbytes
        return height, width

    def _check(self, result: Any, what: str) -> Any:
        """Returns what a call of the CUDA runtime gives beside its error code.

        Raises:
            BackendUnavailableError: if the call failed.
        """
        error, *values = result
        if int(error):
            raise BackendUnavailableError(
                f"{what} failed: {_error_name(error)}", "load the artifact again; if it persists, restart the process"
            )
        return values[0] if len(values) == 1 else tuple(values)


def _load_bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as err:
        raise BackendUnavailableError(f"NVIDIA's CUDA bindings cannot be imported: {err}", _INSTALL) from err


def _error_name(error: Any) -> str:
    return str(getattr(error, "name", error))
