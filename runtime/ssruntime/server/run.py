"""Runs the application with uvicorn: bounded connections, and a stop that lets running requests finish."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from ssruntime.errors import BackendUnavailableError, ConfigError
from ssruntime.server.connection import bounded_connection
from ssruntime.server.service import Service

MAX_CONNECTIONS: Final = 1024
"""Further ones get status 503: each connection takes a file descriptor."""
MAX_HEADERS: Final = 64 * 2**10
"""Most bytes of a request's head."""
KEEP_ALIVE: Final = 30
"""Seconds that an idle connection stays open."""
_AFTER_GRACE: Final = 5
"""Seconds, after the grace time, that connections get to send what is left."""


class Server:
    """Serves an application of `create_app` at an address.

    Attributes:
        url: where it can be reached.
    """

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        """Listens at an address; connections wait until `run` is called.

        Args:
            app: the application.
            host: address or name to listen at.
            port: port to listen at; 0 for a free one.

        Raises:
            BackendUnavailableError: if nothing can listen there.
            ConfigError: if the port is out of range.
        """
        service: Service = app.state.service
        config = uvicorn.Config(
            app,
            http=bounded_connection(service.settings.write_timeout),
            loop="asyncio",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=int(service.settings.grace) + _AFTER_GRACE,
            h11_max_incomplete_event_size=MAX_HEADERS,
        )
        self._listener = _listening(host, port)
        address, number = self._listener.getsockname()[:2]
        self.url = f"http://{f'[{address}]' if ':' in address else address}:{number}"
        self._server = _Server(config, service)

    def run(self) -> None:
        """Serves until SIGINT or SIGTERM comes, or `stop` is called."""
        with self._listener:
            self._server.run(sockets=[self._listener])

    def stop(self) -> None:
        """Refuses new requests, lets running ones finish for the grace time, then ends `run`; thread-safe."""
        self._server.begin_exit()


class _Server(uvicorn.Server):
    """Refuses new requests from the signal on, and lets running ones finish."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops the server; a second interrupt stops it at once."""
        self._service.refuse()
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # a server that was told to stop has not failed

    def begin_exit(self) -> None:
        """Stops the server as a signal does."""
        self._service.refuse()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends requests that outlast the grace time while uvicorn waits for its connections."""
        ending = asyncio.create_task(self._service.stop())
        await super().shutdown(sockets)
        if self.force_exit:
            self._service.cancel_all()
        await ending


def _listening(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound and listens."""
    if not 0 <= port < 2**16:
        raise ConfigError(f"port is out of range: {port}", "give a number from 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(MAX_CONNECTIONS)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else err
        raise BackendUnavailableError(f"cannot listen at {host}, port {port}: {reason}", "give another --host or --port") from err
    return listener
