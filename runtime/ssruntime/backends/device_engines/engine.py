"""What the backend needs of an engine: TensorRT's, or a stand-in of ONNX Runtime on the processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.backends.base import PREFILL_CHUNK


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """An input or an output of an engine.

    Attributes:
        dtype: its data type; uint16 for bfloat16, which numpy lacks.
        shape: its dimensions; -1 where they depend on the pass.
        is_bfloat16: whether its numbers are bfloat16.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_bfloat16: bool = False

    def encode(self, numbers: NDArray[np.float32]) -> NDArray[Any]:
        """Returns numbers in this data type, rounded to the nearest."""
        if not self.is_bfloat16:
            return numbers.astype(self.dtype)
        bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
        # To the nearest, ties to even: what is cut off is at most half of the last bit that stays.
        rounded: NDArray[Any] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return rounded

    @property
    def hidden(self) -> float:
        """Score of a token that must not be attended to, in this data type."""
        return graph_io.hidden_score(self.dtype.name)


ALIGNMENT: Final = 256
"""Bytes that TensorRT wants addresses to be a multiple of."""


def profiles_for(capacity: int) -> tuple[tuple[int, int], ...]:
    """Returns the query lengths, from and to, that an engine is optimized for together.

    A profile for one token alone would make an engine hold its weights twice.

    Args:
        capacity: number of entries of the KV cache, which no pass may exceed.
    """
    ranges = ((1, graph_io.MAX_QUERY_LENGTH), (graph_io.MAX_QUERY_LENGTH + 1, PREFILL_CHUNK))
    return tuple((first, min(last, capacity)) for first, last in ranges if first <= capacity)


class Context(Protocol):
    """An engine with a place for the values of a pass. Used by one thread at a time."""

    def use_profile(self, number: int) -> None:
        """Chooses the profile of the next passes; shapes must be set again."""

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Sets the shape of an input whose dimensions depend on the pass."""

    def set_address(self, name: str, address: int) -> None:
        """Sets the address of an input or an output in the device's memory."""

    def enqueue(self) -> None:
        """Starts a pass. It has ended when the device's next download returns."""


class Engine(Protocol):
    """An open engine."""

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """Inputs by name."""

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """Outputs by name."""

    @property
    def workspace(self) -> int:
        """Bytes that a context needs for intermediate values."""

    def context(self, workspace: int) -> Context:
        """Returns a new context.

        Args:
            workspace: address of memory for intermediate values; contexts of one stream can share it.
        """


class EngineOpener(Protocol):
    """Opens engines on one device."""

    @property
    def title(self) -> str:
        """`cpu`, or the GPU and the library that runs on it."""

    def open(self, graph: bytes, name: str, *, profiles: Sequence[tuple[int, int]], file: Path | None = None) -> Engine:
        """Returns an engine.

        Args:
            graph: a serialized ONNX model of standard operators, whose weights are inputs.
            name: name of the graph in messages.
            profiles: query lengths, from and to, that the engine is optimized for together.
            file: file of the graph, beside its weights, if the engine is to hold these; `graph` is then the
                content of that file.

        Raises:
            ArtifactError: if the graph is not one that the engine can run.
            BackendUnavailableError: if the device cannot run it, or lacks memory.
        """
