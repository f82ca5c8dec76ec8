"""A CUDA runtime over the process's own memory, to test what the code asks of the real one.

Its functions have the names, arguments and results of `cuda.bindings.runtime`.
"""

from __future__ import annotations

import ctypes
import enum
from types import SimpleNamespace
from typing import Any


class Error(enum.IntEnum):
    """Error codes."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700


class StandInCuda:
    """A GPU with some memory.

    Attributes:
        calls: names of the calls so far.
        fails: error codes by the name of the call that fails.
    """

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self, *, memory: int = 2**26, capability: tuple[int, int] = (8, 9), count: int = 1) -> None:
        self.memory, self.capability, self.count = memory, capability, count
        self.calls: list[str] = []
        self.fails: dict[str, Error] = {}
        self.blocks: dict[int, Any] = {}

    def _done(self, name: str, *values: object) -> tuple[Any, ...]:
        self.calls.append(name)
        if name in self.fails:
            return (self.fails[name], *(None for _ in values))
        return (Error.cudaSuccess, *values)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self._done("cudaGetDeviceCount", self.count)

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        return self._done("cudaSetDevice")

    def cudaGetDeviceProperties(self, index: int) -> tuple[Any, ...]:
        major, minor = self.capability
        return self._done("cudaGetDeviceProperties", SimpleNamespace(major=major, minor=minor, name=b"Stand-in"))

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        return self._done("cudaStreamCreate", 77)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return self._done("cudaMemGetInfo", self.memory - self.used, self.memory)

    @property
    def used(self) -> int:
        """Number of allocated bytes."""
        return sum(ctypes.sizeof(block) for block in self.blocks.values())

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if self.used + size > self.memory:
            self.calls.append("cudaMalloc")
            return Error.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(b"\xab" * size, size)
        self.blocks[ctypes.addressof(block)] = block
        return self._done("cudaMalloc", ctypes.addressof(block))

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.blocks[address]
        return self._done("cudaFree")

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[Any, ...]:
        ctypes.memset(address, value, size)
        return self._done("cudaMemsetAsync")

    def cudaMemcpy2DAsync(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, kind: int, stream: int
    ) -> tuple[Any, ...]:
        for row in range(height):
            ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)
        return self._done("cudaMemcpy2DAsync")

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        return self._done("cudaStreamSynchronize")
