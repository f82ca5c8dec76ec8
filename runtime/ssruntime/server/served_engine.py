"""What a server needs of an engine; `ssruntime.AsyncEngine` has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from ssruntime.config import GenerationConfig
from ssruntime.preparation import Preparer, Request
from ssruntime.results import Chunk
from ssruntime.text.prompt import Prompt


class RunningRequest(Protocol):
    """A request that has begun, as an iterator over its chunks."""

    def __aiter__(self) -> AsyncIterator[Chunk]:
        """Returns this object."""

    async def __anext__(self) -> Chunk:
        """Returns the next chunk."""

    def cancel(self) -> None:
        """Ends the request, within one pass if it is decoding; of no effect after its end."""


class ServedEngine(Protocol):
    """Runs requests of one event loop."""

    @property
    def preparer(self) -> Preparer:
        """What checks and completes requests."""

    @property
    def max_requests(self) -> int:
        """The most requests that run and wait together."""

    @property
    def running(self) -> int:
        """The number of requests that have a sequence."""

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a sequence."""

    @property
    def kv_usage(self) -> float:
        """The share, 0 to 1, of all KV-cache entries that running requests use."""

    async def prepare(self, prompt: Prompt | Request, config: GenerationConfig | None = None, *, prefix_namespace: str = "") -> Request:
        """Returns a checked request, without blocking the event loop."""

    def start(self, request: Request, *, timeout: float | None = None) -> RunningRequest:
        """Begins a request.

        Raises:
            QueueFullError: if too many requests wait already.
            BackendUnavailableError: if no request is taken any more.
        """

    async def close(self) -> None:
        """Waits until the requests have ended, and refuses new ones."""
