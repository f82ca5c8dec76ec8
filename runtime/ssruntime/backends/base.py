"""What the decode loop needs of a backend: places for sequences, and forward passes over their shared cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class StepOutput:
    """What one pass gives for its N chosen positions: views of buffers that the next pass of the same engine overwrites.

    Attributes:
        tokens: int64[N], the most probable token after each position.
        confidence: float32[N], its probability at temperature 1.
        logits: float32[N, vocab].
    """

    tokens: NDArray[np.int64]
    confidence: NDArray[np.float32]
    logits: NDArray[np.float32]


class Slot(Protocol):
    """One sequence's cache, bound to the verify and draft engines. Used by one thread at a time.

    Positions count from 0. A pass writes the cache at `[start, start + S)` and attends to everything before; rolling back
    is starting the next pass at a smaller `start`.
    """

    max_context: int
    engine_seconds: float
    """Time spent inside the engines' run call since it was last set to 0."""

    def prefill(self, ids: Sequence[int]) -> StepOutput:
        """Runs a whole prompt through the verify engine in chunks, from position 0; gives the last position (N = 1)."""

    def forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """Runs `ids` in one pass of the verify engine, of any width; gives the positions named (0-based within `ids`)."""

    def verify(self, ids: Sequence[int], start: int) -> StepOutput:
        """Runs up to `MAX_VERIFY_WIDTH` tokens in one pass of the verify engine; gives every position."""

    def draft(self, token: int, position: int) -> StepOutput:
        """Runs one token through the draft engine (N = 1)."""

    def draft_forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """As `forward`, through the draft engine: for measuring a draft's own parity."""


class Backend(Protocol):
    """The open engines of one artifact. Safe to use from several threads."""

    vocab_size: int
    max_context: int
    has_draft: bool
    threads: int
    """Threads that each engine computes with."""
    packing: str
    """`shared`, or `private (why)`: whether the packed weights are one copy for every engine and process of this host."""

    def acquire(self, timeout: float | None) -> Slot:
        """Takes a slot from the pool, waiting up to `timeout` seconds (None: for as long as it takes).

        Raises:
            BackendUnavailableError: if none came free in time.
        """

    def release(self, slot: Slot) -> None:
        """Gives a slot back."""

    def close(self) -> None:
        """Drops the engines and the buffers."""
