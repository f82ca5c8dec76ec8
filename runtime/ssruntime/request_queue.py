"""What engines for asyncio share: the places of running and waiting requests, and the chunks on their way."""

from __future__ import annotations

import asyncio
from typing import Self

from ssruntime.errors import QueueFullError
from ssruntime.results import Chunk


class Places:
    """Counts the requests that run and wait, and refuses further ones.

    Attributes:
        capacity: most requests that run at the same time.
        limit: most requests that run and wait together.
    """

    def __init__(self, capacity: int, max_waiting: int) -> None:
        """Begins without requests.

        Args:
            capacity: most requests that run at the same time.
            max_waiting: most requests that wait.
        """
        self.capacity = capacity
        self.limit = capacity + max_waiting
        self._taken = 0

    @property
    def running(self) -> int:
        """The number of requests that run."""
        return min(self._taken, self.capacity)

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return self._taken - self.running

    def take(self) -> None:
        """Counts a new request.

        Raises:
            QueueFullError: if too many requests wait already.
        """
        if self._taken >= self.limit:
            raise QueueFullError(
                f"{self.waiting} requests wait for a free sequence already", "try again later, or raise max_sequences or max_waiting"
            )
        self._taken += 1

    def give_back(self) -> None:
        """Counts the end of a request."""
        self._taken -= 1


class ChunkQueue:
    """The chunks of one request, for one reader in the same event loop."""

    def __init__(self) -> None:
        self._found = asyncio.Queue[Chunk | BaseException | None]()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        """Returns the next chunk.

        Raises:
            BaseException: what `put` was given.
        """
        news = await self._found.get()
        if news is None:
            self.end()  # for a further call
            raise StopAsyncIteration
        if isinstance(news, BaseException):
            raise news
        return news

    def put(self, news: Chunk | BaseException) -> None:
        """Adds a chunk, or an error that the reader shall get."""
        self._found.put_nowait(news)

    def end(self) -> None:
        """Tells the reader that nothing follows."""
        self._found.put_nowait(None)
