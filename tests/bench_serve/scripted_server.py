"""A real HTTP server whose answers, byte by byte, a test chooses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

MODELS: Final = "GET /v1/models"
COMPLETIONS: Final = "POST /v1/completions"
CHAT: Final = "POST /v1/chat/completions"
METRICS: Final = "GET /metrics"


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request that the server got."""

    route: str
    headers: dict[str, str]
    body: Any


class Wire:
    """Writes one answer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def answer(self, status: int, body: bytes, *, kind: str = "application/json", headers: Sequence[str] = ()) -> None:
        """Writes a whole answer."""
        lines = [f"HTTP/1.1 {status} Status", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
        await self._write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def json(self, status: int, data: object, *, headers: Sequence[str] = ()) -> None:
        """Writes a whole answer of JSON."""
        await self.answer(status, json.dumps(data).encode(), headers=headers)

    async def start_stream(self) -> None:
        """Writes the head of a stream of events."""
        await self._write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def piece(self, data: bytes) -> None:
        """Writes one chunk of a stream."""
        await self._write(b"%x\r\n%s\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        """Ends a stream as HTTP asks for it."""
        await self._write(b"0\r\n\r\n")

    async def stream(self, *pieces: bytes) -> None:
        """Writes a whole stream."""
        await self.start_stream()
        for piece in pieces:
            await self.piece(piece)
        await self.end_stream()

    def drop(self) -> None:
        """Closes the connection at once."""
        self._writer.transport.abort()

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


Answer = Callable[[Received, Wire], Awaitable[None]]


@dataclass(kw_only=True)
class ScriptedServer:
    """A running server.

    Attributes:
        answers: what to do by method and path; other paths get status 404.
        received: all requests in the order of their arrival.
        url: the server's root.
        max_open: most requests that were open at the same time.
    """

    answers: dict[str, Answer]
    received: list[Received] = field(default_factory=list)
    url: str = ""
    max_open: int = 0
    num_open: int = 0

    def bodies(self, route: str) -> list[Any]:
        """Returns the bodies of the requests to a route."""
        return [r.body for r in self.received if r.route == route]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while start := await reader.read(1):
                if not start.isalpha():  # the first byte of TLS, for one
                    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                    break
                head = start + await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                request = Received(route=first.rpartition(" ")[0], headers=headers, body=json.loads(body) if body else None)
                self.received.append(request)
                self.num_open += 1
                self.max_open = max(self.max_open, self.num_open)
                try:
                    await self.answers.get(request.route, not_found)(request, Wire(writer))
                finally:
                    self.num_open -= 1
        writer.close()


async def not_found(_request: Received, wire: Wire) -> None:
    """Answers as a server does that has no such path."""
    await wire.json(404, {"detail": "Not Found"})


def lists_models(*names: str) -> Answer:
    """Returns an answer that lists models."""

    async def answer(_request: Received, wire: Wire) -> None:
        await wire.json(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    return answer


def refuses(status: int, data: object, *headers: str) -> Answer:
    """Returns an answer of JSON with a status."""

    async def answer(_request: Received, wire: Wire) -> None:
        await wire.json(status, data, headers=headers)

    return answer


def says(status: int, text: str, kind: str) -> Answer:
    """Returns an answer of another content type."""

    async def answer(_request: Received, wire: Wire) -> None:
        await wire.answer(status, text.encode(), kind=kind)

    return answer


def streams(*pieces: bytes) -> Answer:
    """Returns an answer that streams pieces."""

    async def answer(_request: Received, wire: Wire) -> None:
        await wire.stream(*pieces)

    return answer


def in_turn(*answers: Answer) -> Answer:
    """Returns an answer that is the first of `answers` for the first request, and so on; the last repeats."""
    left = list(answers)

    async def answer(request: Received, wire: Wire) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(request, wire)

    return answer


def event(data: object) -> bytes:
    """Returns an event with JSON data, or with a text as it is."""
    return b"data: " + (data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)).encode() + b"\n\n"


def text(content: str, finish_reason: str | None = None) -> bytes:
    """Returns a chunk of a completion."""
    return event({"object": "text_completion", "choices": [{"index": 0, "text": content, "finish_reason": finish_reason}]})


def delta(finish_reason: str | None = None, **content: object) -> bytes:
    """Returns a chunk of a chat."""
    return event({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": content, "finish_reason": finish_reason}]})


def usage(prompt_tokens: int, completion_tokens: int, **more: object) -> bytes:
    """Returns the chunk with the numbers of tokens."""
    return event({"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}, **more})


DONE: Final = event("[DONE]")
GOOD: Final = (text("Hel"), text("lo"), text("", "stop"), usage(3, 5), DONE)


@contextlib.contextmanager
def running(server: ScriptedServer, tls: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    """Runs a server in a thread while the block runs."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    started = threading.Event()

    async def serve() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
        server.url = f"{'https' if tls else 'http'}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        started.set()
        await stop.wait()
        listening.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
