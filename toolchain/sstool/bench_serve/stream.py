"""Interprets the events of one streamed completion: when its text came, how it ended, its tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ssruntime.strict_reader import parse_json
from sstool.bench_serve.acceptance import Speculation, read_speculation
from sstool.bench_serve.errors import RequestFailedError, message_of, shown
from sstool.bench_serve.sse import ERROR_NAME, Event

_DONE: Final = "[DONE]"


class StreamRecorder:
    """Records one stream, from events and the times when they were read.

    Attributes:
        is_done: whether `[DONE]` was read.
        chunk_times: when each chunk with text came, in seconds of the caller's clock.
        finished_at: when the chunk with the reason of the end came; None before.
        finish_reason: why the server ended the text; None before.
        prompt_tokens: number of tokens of the prompt; None if the server has not said it.
        completion_tokens: number of tokens of the output; None if the server has not said it.
        speculation: the server's figures of speculative decoding; None if it gives none.
    """

    def __init__(self, *, secret: str | None = None) -> None:
        """Makes a recorder.

        Args:
            secret: a text that no message may contain, such as an API key; None for none.
        """
        self._secret = secret
        self.is_done = False
        self.chunk_times: list[float] = []
        self.finished_at: float | None = None
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.speculation: Speculation | None = None
        self._digest = hashlib.sha256()

    @property
    def text_sha256(self) -> str:
        """The SHA-256 of the text in UTF-8, in hexadecimal digits.

        The text of a chat is its reasoning, its content, and the names and arguments of tool calls, in the
        order in which they came.
        """
        return self._digest.hexdigest()

    def take(self, event: Event, at: float) -> None:
        """Records an event that was read at time `at`; ignores what follows `[DONE]`.

        Raises:
            RequestFailedError: if the event reports an error, or is not a chunk of a completion.
        """
        if self.is_done:
            return
        if event.data.strip() == _DONE:
            self.is_done = True
            return
        if event.name == ERROR_NAME:
            raise RequestFailedError(f"error in the stream: {message_of(event.data, secret=self._secret)}")
        chunk = self._read(event.data)
        if (speculation := read_speculation(chunk)) is not None:
            self.speculation = speculation
        self._take_usage(chunk.get("usage"))
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, Mapping) and choice.get("index", 0) == 0:
                self._take_choice(choice, at)

    def _read(self, data: str) -> Mapping[str, Any]:
        try:
            chunk = parse_json(data)
        except ValueError as err:
            raise RequestFailedError(f"an event is not JSON: {shown(data, secret=self._secret)}") from err
        if not isinstance(chunk, Mapping):
            raise RequestFailedError(f"an event is not an object: {shown(data, secret=self._secret)}")
        if chunk.get("error") or chunk.get("object") == "error":
            raise RequestFailedError(f"error in the stream: {message_of(data, secret=self._secret)}")
        return chunk

    def _take_usage(self, usage: object) -> None:
        if isinstance(usage, Mapping):
            self.prompt_tokens = _tokens(usage.get("prompt_tokens"), self.prompt_tokens)
            self.completion_tokens = _tokens(usage.get("completion_tokens"), self.completion_tokens)

    def _take_choice(self, choice: Mapping[str, Any], at: float) -> None:
        texts = [text for text in _texts(choice) if text]
        for text in texts:
            self._digest.update(text.encode("utf-8", errors="surrogatepass"))
        if texts:
            self.chunk_times.append(at)
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self.finish_reason, self.finished_at = shown(reason), at


def _texts(choice: Mapping[str, Any]) -> Iterator[str]:
    """Yields the parts of the text in a chunk's choice: of a completion, or of a chat."""
    delta = choice.get("delta")
    delta = delta if isinstance(delta, Mapping) else {}
    # vLLM gives the reasoning under both names, other servers under one of them.
    for value in (choice.get("text"), delta.get("reasoning") or delta.get("reasoning_content"), delta.get("content")):
        if isinstance(value, str):
            yield value
    calls = delta.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, Mapping) else None
        for key in ("name", "arguments"):
            if isinstance(function, Mapping) and isinstance(function.get(key), str):
                yield function[key]


def _tokens(value: object, otherwise: int | None) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise
