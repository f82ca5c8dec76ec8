"""The access log: a line of JSON for each request, with its id; prompts only if asked for."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ssruntime.server.errors import MAX_SHOWN
from ssruntime.text.printable import printable, printable_json

logger = logging.getLogger(__name__)

_REQUEST_ID: Final = "x-request-id"
_ALLOWED: Final = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_QUIET: Final = frozenset({"/health", "/ready", "/metrics"})
"""Paths that monitors ask for again and again."""


class AccessLog:
    """Gives each request an id, which the response repeats, and logs the request at its end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application, and logs what it answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, given = time.perf_counter(), Headers(scope=scope).get(_REQUEST_ID, "")
        request_id = given if _ALLOWED.fullmatch(given) else uuid.uuid4().hex
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[_REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if scope["path"] not in _QUIET:
                logger.info(printable_json(_line(scope, state, status, time.perf_counter() - begun)))


def _line(scope: Scope, state: dict[str, Any], status: int, seconds: float) -> dict[str, Any]:
    client = scope.get("client")
    line = {
        "request_id": state["request_id"],
        "client": client[0] if client else None,
        "key": state.get("key"),
        "user": printable(state["user"], MAX_SHOWN) if state.get("user") else None,
        "method": scope["method"],
        "path": printable(scope["path"], MAX_SHOWN),
        "status": status or None,
        "ms": round(1000 * seconds, 1),
        "error": printable(state["error"], MAX_SHOWN) if "error" in state else None,
    }
    if (choices := state.get("choices")) is not None:
        usage = choices.usage()
        line |= {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens, "finish": choices.finish_reasons}
    if "prompt" in state:
        line["prompt"] = state["prompt"]
    return {name: value for name, value in line.items() if value is not None}
