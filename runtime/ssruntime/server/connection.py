"""Connections that end when their client sends a request's head too slowly, or reads nothing."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT: Final = 10.0
"""Seconds that a client may take to send a request's head."""

MAX_AHEAD: Final = 64 * 2**10
"""Bytes that are read beyond a request that runs, to notice if its client closes the connection."""


class BoundedConnection(H11Protocol):
    """Uvicorn's connection, with limits for slow clients."""

    write_timeout: ClassVar[float]
    """Seconds after which a connection is cut whose client reads nothing."""
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn declares it
        """Begins a connection, whose client must send the head of a request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends a connection."""
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes a part of a request."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_expecting()
        elif self._head_timer is None and self.conn.trailing_data[0]:
            self._expect_head()  # the head of a further request has begun
        if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) <= MAX_AHEAD:
            # Uvicorn stops reading if more comes while a request runs, and would not see its client go.
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        """Waits for the client to read."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Goes on: the client has read."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self.transport.abort)

    def _stop_expecting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded_connection(write_timeout: float) -> type[BoundedConnection]:
    """Returns the class of connections with this time limit, in seconds, for clients that read nothing."""
    return type("Connection", (BoundedConnection,), {"write_timeout": write_timeout})
