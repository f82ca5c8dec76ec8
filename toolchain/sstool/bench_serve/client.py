"""Talks HTTP with a server: which models it has, what its counters are, and one streamed completion."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Final, Self

import httpx2

from ssruntime.errors import ConfigError
from ssruntime.strict_reader import parse_json
from sstool.bench_serve.acceptance import read_counters
from sstool.bench_serve.address import ServerAddress
from sstool.bench_serve.errors import RequestFailedError, ServerError, message_of, shown
from sstool.bench_serve.sse import EventReader, EventTooLongError
from sstool.bench_serve.stream import StreamRecorder

_MAX_BODY: Final = 16 * 1024 * 1024
"""Most bytes that are read of an answer that is no stream."""
_MAX_ERROR_BODY: Final = 64 * 1024
_SIDE_TIMEOUT_S: Final = 30.0
"""Seconds for a question that is not measured: the models, or the counters."""
_END_TIMEOUT_S: Final = 1.0
"""Seconds for the end of a response after `[DONE]`; a connection can be used again only after it."""
_IDLE_S: Final = 2.0
"""Seconds after which an idle connection is not used again.

Many servers close theirs after five, and a request that is sent at that moment is lost."""
_TRIES: Final = 3
"""Most connections that a request is sent on.

llama.cpp's server closes some right after a stream, though it says that it keeps them."""
_TOO_MANY_REQUESTS: Final = 429
_NOT_ALLOWED: Final = (401, 403)
_NOT_THERE: Final = (404, 405, 501)


class ApiClient:
    """An open client of one server, to be used in an `async with` statement."""

    def __init__(self, address: ServerAddress, *, api_key: str | None, timeout_s: float) -> None:
        """Makes a client without connecting.

        Args:
            address: where the server is.
            api_key: key to send with each request; None for none. It is never part of a message.
            timeout_s: seconds that a completion may take.

        Raises:
            ConfigError: if the key cannot be sent in a header.
        """
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("the API key holds characters that a header cannot", "check the variable: it may end with a line break")
        self._address = address
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._http = httpx2.AsyncClient(
            # A compressing proxy would hold back chunks until its block is full.
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {api_key}"} if api_key is not None else {}),
            timeout=None,  # asyncio.timeout limits each request as a whole
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE_S),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.aclose()

    async def models(self, *, needed: bool) -> list[str]:
        """Returns the names of the server's models; none if it has no list of them.

        Args:
            needed: whether the names are needed. If not, a list that is broken is like none.

        Raises:
            ServerError: if the server cannot be reached, does not accept the key, redirects or answers with
                HTML; or, if the names are needed, does not list models as OpenAI's API does.
        """
        url = self._address.of("/models")
        try:
            async with asyncio.timeout(_SIDE_TIMEOUT_S), self._http.stream("GET", url) as response:
                body = await _read(response, _MAX_BODY)
        except TimeoutError as err:
            raise ServerError(f"{url} did not answer in {_SIDE_TIMEOUT_S:g} s", "check the URL, and that the server has started") from err
        except httpx2.InvalidURL as err:
            raise ServerError(f"{url} is not a URL: {shown(str(err))}", "pass the server's root, as http://127.0.0.1:8000") from err
        except httpx2.HTTPError as err:
            raise _unreachable(url, err) from err
        status = response.status_code
        if _is_wrong_place(response):
            raise self._refusal(url, response, body)
        if not needed or status in _NOT_THERE:
            return []
        if status != httpx2.codes.OK:
            raise self._refusal(url, response, body)
        return self._model_names(url, body)

    async def counters(self) -> dict[str, float] | None:
        """Returns the server's counters of speculative decoding; None if it shows none."""
        try:
            async with asyncio.timeout(_SIDE_TIMEOUT_S), self._http.stream("GET", self._address.metrics) as response:
                body = await _read(response, _MAX_BODY)
        except (TimeoutError, httpx2.HTTPError):
            return None
        return read_counters(body.decode("utf-8", errors="replace")) if response.status_code == httpx2.codes.OK else None

    async def complete(self, path: str, body: bytes, stream: StreamRecorder) -> float:
        """Sends a request for a completion, records its stream, and returns when it ended.

        Args:
            path: path of the API, such as `/completions`.
            body: the request's body, JSON that asks for a stream.
            stream: records what comes. After an error it holds what came before.

        A stream is whole if it ends with `[DONE]`. One that ends without it, as those of `transformers serve`
        do, is whole if a chunk gave the reason of the end and HTTP's own end came.

        Returns:
            The time of `time.perf_counter()` when the last chunk was read.

        Raises:
            RequestFailedError: if the server refuses the request, reports an error, or breaks the stream off.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._complete(self._address.of(path), body, stream)
        except TimeoutError as err:
            raise RequestFailedError(f"no end after {self._timeout_s:g} s") from err
        except EventTooLongError as err:
            raise RequestFailedError(str(err)) from err
        except httpx2.HTTPError as err:
            raise RequestFailedError(f"connection lost: {_why(err)}") from err

    async def _complete(self, url: str, body: bytes, stream: StreamRecorder) -> float:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        request = self._http.build_request("POST", url, content=body, headers=headers)
        async with contextlib.aclosing(await self._send(request)) as response:
            kind = _content_type(response)
            if response.status_code != httpx2.codes.OK or kind != "text/event-stream":
                answer = await _read(response, _MAX_ERROR_BODY)
                raise self._failure(url, response, answer)
            events = EventReader()
            chunks, at = response.aiter_bytes(), time.perf_counter()
            async for chunk in chunks:
                at = time.perf_counter()
                for event in events.feed(chunk):
                    stream.take(event, at)
                if stream.is_done:
                    await _read_end(chunks)
                    return at
        if stream.finish_reason is not None and events.is_between_events:
            return at
        raise RequestFailedError(
            "the stream ended without [DONE] and without a reason" if events.is_between_events else "the stream ended inside an event"
        )

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        """Returns the response without its body; sends again if the connection closes before there is one."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                return await self._http.send(request, stream=True)
        return await self._http.send(request, stream=True)

    def _failure(self, url: str, response: httpx2.Response, body: bytes) -> RequestFailedError:
        """Returns the error for an answer that is no stream."""
        status, message = response.status_code, message_of(body, secret=self._api_key)
        if status == _TOO_MANY_REQUESTS:
            return RequestFailedError(f"HTTP 429: {message}" if message else "HTTP 429", refused=True)
        reason = f"HTTP {status}" + (f": {message}" if message else "")
        if status == httpx2.codes.OK:
            reason = f"no stream, but {_content_type(response) or 'an answer without a content type'}" + (f": {message}" if message else "")
        return RequestFailedError(reason, hopeless=self._hopeless(url, response, body))

    def _hopeless(self, url: str, response: httpx2.Response, body: bytes) -> ServerError | None:
        """Returns why all requests would fail, if this answer tells; else None."""
        status, message = response.status_code, message_of(body, secret=self._api_key)
        if b"model_not_found" in body or (status == httpx2.codes.NOT_FOUND and "model" in message.lower()):
            return ServerError(
                f"the server does not know the model: {message or 'model_not_found'}", "pass --model NAME, a name of GET /v1/models"
            )
        if status in _NOT_THERE or _is_wrong_place(response):
            return self._refusal(url, response, body)
        if status == httpx2.codes.OK and b'"choices"' in body:
            return ServerError(
                f"{url} answers with {_content_type(response) or 'no content type'}, not with a stream", "use a server that streams"
            )
        return None

    def _model_names(self, url: str, body: bytes) -> list[str]:
        try:
            data: Any = parse_json(body)
            names = [entry["id"] for entry in data["data"]]
        except (ValueError, LookupError, TypeError) as err:
            found = shown(body[:4096].decode("utf-8", errors="replace"), secret=self._api_key) or "nothing"
            message = f"{url} does not list models as OpenAI's API does: it answers with {found}"
            raise ServerError(message, "check host, port and path") from err
        return [name for name in names if isinstance(name, str)]

    def _refusal(self, url: str, response: httpx2.Response, body: bytes) -> ServerError:
        """Returns the error for an answer with a status that is no success, or with HTML."""
        status, message = response.status_code, message_of(body, secret=self._api_key)
        said = f"{url} answers with status {status}" + (f": {message}" if message else "")
        if status in _NOT_ALLOWED:
            key = (
                "the key in that variable is not accepted"
                if self._api_key is not None
                else "pass the name of a variable: --api-key-env VAR"
            )
            return ServerError(said, key)
        if 300 <= status < 400:
            return ServerError(f"{url} redirects to {shown(response.headers.get('location', ''))}", "pass the URL that it redirects to")
        if _is_html(response):
            return ServerError(
                f"{url} answers with HTML (status {status}), so this is no server with OpenAI's API", "check host, port and path"
            )
        if status in _NOT_THERE:
            return ServerError(
                said, "check the URL: it is the server's root, or ends with /v1; not every server has both --endpoint values"
            )
        return ServerError(said, "check the server's log; it may still be loading its model")


async def _read(response: httpx2.Response, limit: int) -> bytes:
    """Returns the body of a response, or its first `limit` bytes."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) >= limit:
            break
    return bytes(body[:limit])


async def _read_end(chunks: AsyncIterator[bytes]) -> None:
    with contextlib.suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(_END_TIMEOUT_S):
            async for _ in chunks:
                pass


def _content_type(response: httpx2.Response) -> str:
    return shown(response.headers.get("content-type", "").partition(";")[0].strip().lower())


def _is_html(response: httpx2.Response) -> bool:
    return _content_type(response) in ("text/html", "application/xhtml+xml")


def _is_wrong_place(response: httpx2.Response) -> bool:
    """Returns whether an answer shows that the URL or the key is wrong, whatever was asked."""
    return response.status_code in _NOT_ALLOWED or 300 <= response.status_code < 400 or _is_html(response)


def _unreachable(url: str, err: httpx2.HTTPError) -> ServerError:
    if isinstance(_cause(err), ssl.SSLCertVerificationError):
        return ServerError(f"the certificate of {url} is not trusted: {_why(err)}", "set SSL_CERT_FILE to the authority's certificate")
    if isinstance(_cause(err), ssl.SSLError):
        return ServerError(f"no TLS connection to {url}: {_why(err)}", "the server may speak http instead of https")
    if isinstance(err, httpx2.ConnectError):
        return ServerError(f"cannot connect to {url}: {_why(err)}", "check host and port, and that the server has started")
    return ServerError(f"{url} does not answer in HTTP: {_why(err)}", "check host and port; the server may speak https instead of http")


def _cause(err: BaseException) -> BaseException | None:
    """Returns the first error of TLS that led to `err`; None if there is none."""
    found: BaseException | None = err
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__ or found.__context__
    return found


def _why(err: BaseException) -> str:
    return shown(str(err)) or type(err).__name__
