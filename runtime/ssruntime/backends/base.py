"""What the decode loop needs of a backend: places for sequences, and forward passes over their shared cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ssruntime.proposal import Alternative


@dataclass(slots=True)
class StepOutput:
    """What one pass gives for its N chosen positions: views of buffers that the next pass of the same engine overwrites.

    Attributes:
        tokens: int64[N], the most probable token after each position.
        confidence: float32[N], its probability at temperature 1.
        top_tokens: int64[N, num_top], the most probable tokens, best first, ties by lower id.
        top_logits: float32[N, num_top], their logits.
        logits: float32[N, vocab].
    """

    tokens: NDArray[np.int64]
    confidence: NDArray[np.float32]
    top_tokens: NDArray[np.int64]
    top_logits: NDArray[np.float32]
    logits: NDArray[np.float32]
    # The same memory without numpy, whose calls cost ten times as much after a pass of an engine has emptied the processor's caches.
    _tokens: memoryview = field(init=False, repr=False)
    _confidence: memoryview = field(init=False, repr=False)
    _top_tokens: memoryview = field(init=False, repr=False)
    _top_logits: memoryview = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tokens, self._confidence = self.tokens.data, self.confidence.data
        self._top_tokens, self._top_logits = self.top_tokens.reshape(-1).data, self.top_logits.reshape(-1).data

    def head(self, count: int) -> StepOutput:
        """Returns the first `count` positions, over the same memory."""
        return self._part(slice(count))

    def row(self, row: int) -> StepOutput:
        """Returns one position alone, over the same memory."""
        return self._part(slice(row, row + 1))

    def _part(self, chosen: slice) -> StepOutput:
        return StepOutput(
            tokens=self.tokens[chosen],
            confidence=self.confidence[chosen],
            top_tokens=self.top_tokens[chosen],
            top_logits=self.top_logits[chosen],
            logits=self.logits[chosen],
        )

    def token(self, row: int) -> int:
        """Returns the most probable token after a position."""
        token: int = self._tokens[row]
        return token

    def probability(self, row: int) -> float:
        """Returns that token's probability at temperature 1."""
        probability: float = self._confidence[row]
        return probability

    def top(self, row: int) -> tuple[Sequence[int], Sequence[float]]:
        """Returns the most probable tokens after a position, and their logits: not copied, as few of them are looked at."""
        count = self.top_tokens.shape[1]
        chosen = slice(row * count, (row + 1) * count)
        return cast("Sequence[int]", self._top_tokens[chosen]), cast("Sequence[float]", self._top_logits[chosen])


class Slot(Protocol):
    """One sequence's cache, bound to the verify and draft engines. Used by one thread at a time.

    Positions count from 0. A pass writes the cache at `[start, start + S)` and attends to everything before; rolling back
    is starting the next pass at a smaller `start`.
    """

    max_context: int
    alternatives_end: int
    """Position from which on no alternative may stand: `max_context`, or the narrowest window where that is less. A kernel's window
    reaches back from where a token lies in the cache, and an alternative lies further on than it stands."""
    engine_seconds: float
    """Time spent inside the engines' run call since it was last set to 0."""

    def prefill(self, ids: Sequence[int]) -> StepOutput:
        """Runs a whole prompt through the verify engine in chunks, from position 0; gives the last position (N = 1)."""

    def forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """Runs `ids` in one pass of the verify engine, of any width; gives the positions named (0-based within `ids`)."""

    def verify(self, ids: Sequence[int], start: int, alternatives: Sequence[Alternative] = ()) -> StepOutput:
        """Runs up to `MAX_QUERY_LENGTH` tokens in one pass of the verify engine; gives a row for each.

        Args:
            ids: the chain, from position `start` on.
            start: of the first.
            alternatives: beside the chain's tokens after the first: one of depth d stands at `start + 1 + d` and sees what is before
                that. In the cache they lie behind the chain, in their order, and their rows come after its rows. Not at `start` 0.
        """

    def copy_kv(self, source: int, target: int) -> None:
        """Gives position `target` of the cache the keys and values of `source`, as where an alternative stands for good."""

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
