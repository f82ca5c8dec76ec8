"""Limits for what clients send and how slowly they send and read, as ASGI middleware."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssruntime.server.errors import ApiError
from ssruntime.server.settings import ServerSettings

_CLOSE: Final = {"Connection": "close"}


class ClientLimits:
    """Bounds the size of a body, the time to read it, and the time that a response may stay unread."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application with bounded `receive` and `send`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = _Client(receive, send, self._settings)
        try:
            if _declared_length(scope) > self._settings.max_body:
                raise client.too_large()
            await self._app(scope, client.receive, client.send)
        except ApiError as err:
            if client.has_started:
                raise
            await err.response()(scope, receive, client.send)


class _Client:
    """The two directions of one request."""

    def __init__(self, receive: Receive, send: Send, settings: ServerSettings) -> None:
        self._receive = receive
        self._send = send
        self._settings = settings
        self._deadline = asyncio.get_running_loop().time() + settings.read_timeout
        self._read = 0
        self._is_read = False
        self.has_started = False

    def too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._settings.max_body} bytes", code="body_too_large", headers=_CLOSE)

    async def receive(self) -> Message:
        """Returns the next message; before the body's end, within its time and size."""
        if self._is_read:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {self._settings.read_timeout:g} s", code="timeout", headers=_CLOSE) from None
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._is_read = not message.get("more_body", False)
        if self._read > self._settings.max_body:
            raise self.too_large()
        return message

    async def send(self, message: Message) -> None:
        """Sends a message; a client that reads nothing for too long is treated as gone."""
        self.has_started = True
        try:
            async with asyncio.timeout(self._settings.write_timeout):
                await self._send(message)
        except TimeoutError:
            raise SlowClientError from None


class SlowClientError(Exception):
    """The client did not read the response in time; the connection is cut."""


def _declared_length(scope: Scope) -> int:
    """Returns the body's length as the request declares it; 0 if it does not."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0
