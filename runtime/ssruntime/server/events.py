"""Server-sent events: a response that ends its generator as soon as the client is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final, TypeVar

from fastapi.responses import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from ssruntime.server.errors import ApiError

T = TypeVar("T")

DONE: Final = b"data: [DONE]\n\n"


def event(body: BaseModel) -> bytes:
    """Returns an event whose data is a JSON object."""
    return b"data: " + body.model_dump_json().encode() + b"\n\n"


class EventStream(Response):
    """A response of server-sent events.

    An error in the middle becomes the last event, because the status has been sent by then.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], close: Callable[[], None], on_failure: Callable[[ApiError], None]) -> None:
        """Takes the events.

        Args:
            events: the events; the generator is closed in any case.
            close: called at the end, also if no event was sent.
            on_failure: called with the error that became the last event.
        """
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._on_failure = on_failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events, until they end or the client is gone."""
        try:
            with contextlib.suppress(ClientGoneError):
                await until_gone(receive, self._send(send))
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self._events) as events:
            try:
                async for one in events:
                    await send({"type": "http.response.body", "body": one, "more_body": True})
            except ApiError as err:
                self._on_failure(err)
                await send({"type": "http.response.body", "body": event(err.body), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class ClientGoneError(Exception):
    """The client has closed its connection."""


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Returns the result of a coroutine, which is cancelled if the client closes its connection meanwhile.

    Args:
        receive: the request's events, after its body.
        work: the coroutine.

    Raises:
        ClientGoneError: if the client was gone first.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))  # so that nothing of the request runs on


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
