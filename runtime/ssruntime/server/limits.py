"""Limits for what clients send and how slowly they send it, as ASGI middleware."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssruntime.server.errors import ApiError
from ssruntime.server.settings import ServerSettings

_CLOSE: Final = {"Connection": "close"}


class ClientLimits:
    """Bounds the size of a body and the time to read it."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application with a bounded `receive`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._app(scope, _Client(scope, receive, self._settings).receive, send)


class _Client:
    """What a client sends."""

    def __init__(self, scope: Scope, receive: Receive, settings: ServerSettings) -> None:
        self._receive = receive
        self._settings = settings
        self._deadline = asyncio.get_running_loop().time() + settings.read_timeout
        self._size = _declared_length(scope)
        """Bytes that the body has at least."""
        self._read = 0
        self._is_read = False

    async def receive(self) -> Message:
        """Returns the next message; before the body's end, within its time and size.

        Raises:
            ApiError: if the body is too large or too slow; the application answers with it.
        """
        if self._is_read:
            return await self._receive()
        self._check_size()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {self._settings.read_timeout:g} s", code="timeout", headers=_CLOSE) from None
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._size = max(self._size, self._read)
            self._is_read = not message.get("more_body", False)
        self._check_size()
        return message

    def _check_size(self) -> None:
        if self._size > self._settings.max_body:
            raise ApiError(413, f"the body is larger than {self._settings.max_body} bytes", code="body_too_large", headers=_CLOSE)


def _declared_length(scope: Scope) -> int:
    """Returns the body's length as the request declares it; 0 if it does not."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0
