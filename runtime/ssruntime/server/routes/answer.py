"""Requests to both endpoints for completions: begun, and answered as a whole or as server-sent events."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, Protocol

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel
from pydantic_core import to_json

from ssruntime.config import GenerationConfig
from ssruntime.server.choices import Choices, FinishReason, Piece
from ssruntime.server.events import DONE, ClientGoneError, EventStream, event, until_gone
from ssruntime.server.failures import note_failure
from ssruntime.server.routes.access import remember
from ssruntime.server.routes.growing_json import GrowingJson, with_logprobs
from ssruntime.server.schema.answer import Answer, AnswerHead
from ssruntime.server.schema.chat import ChatRequest
from ssruntime.server.schema.completions import CompletionRequest
from ssruntime.server.schema.decoding import UsageIn
from ssruntime.server.service import Service
from ssruntime.text.prompt import Prompt

_MARK: Final = "\0"
CLIENT_GONE: Final = 499
"""Status in the log of a request whose client did not wait for the answer."""


class Asked(NamedTuple):
    """What a request asks for.

    Attributes:
        prompts: its prompts.
        config: settings for all of them.
        writer: returns the form of the answer for completions that have begun.
    """

    prompts: Sequence[Prompt]
    config: GenerationConfig
    writer: Callable[[Choices], Writer]


@dataclass
class Finished:
    """A finished choice."""

    text: list[str] = field(default_factory=list)
    logprobs: GrowingJson = field(default_factory=GrowingJson)
    finish_reason: FinishReason = "stop"


class Writer(Protocol):
    """Puts the completions of one request into an endpoint's form."""

    def first(self) -> Sequence[Answer]:
        """Returns the chunks of a stream before the first text."""

    def chunk(self, piece: Piece) -> Answer:
        """Returns the chunk of a stream for a piece; pieces of a choice come in order."""

    def usage(self) -> Answer:
        """Returns the last chunk of a stream, which has the usage."""

    def whole(self, finished: Sequence[Finished]) -> Answer:
        """Returns the response with all choices, but without log probabilities."""

    def logprobs(self, piece: Piece) -> BaseModel | None:
        """Returns the log probabilities of a piece; None if none were asked for."""


def head_of(service: Service, prefix: str) -> AnswerHead:
    """Returns the head of the answer to a new request, whose id begins with a prefix."""
    return AnswerHead(
        id=f"{prefix}-{uuid.uuid4().hex}", created=int(time.time()), model=service.names[0], system_fingerprint=service.fingerprint
    )


async def respond(
    request: Request, service: Service, key: str, body: CompletionRequest | ChatRequest, asked: Callable[[], Asked]
) -> Response:
    """Checks a request, begins its completions and returns the response.

    Args:
        request: the HTTP request.
        service: the server's state.
        key: name of the request's API key.
        body: its body.
        asked: returns what it asks for.

    Raises:
        ApiError: if it cannot be followed, or its completions failed.
        SelfSpecError: if prompts or settings cannot be used.
    """
    arrived = time.perf_counter()
    remember(request, service, body)
    service.check_model(body.model)
    prompts, config, writer = asked()
    service.check_room(len(prompts) * body.choices)
    requests = [one for prompt in prompts for one in await service.prepare(prompt, config, choices=body.choices, key=key)]
    request.state.choices = choices = service.begin(requests, arrived=arrived)
    if body.stream:
        return EventStream(_events(choices, writer(choices), body.usage_in), choices.close, partial(note_failure, request))
    return await _whole(request, choices, writer(choices))


async def _whole(request: Request, choices: Choices, writer: Writer) -> Response:
    try:
        finished = await until_gone(request.receive, _collected(choices, writer))
    except ClientGoneError:
        return Response(status_code=CLIENT_GONE)
    finally:
        choices.close()
    return Response(with_logprobs(writer.whole(finished), [one.logprobs for one in finished]), media_type="application/json")


async def _events(choices: Choices, writer: Writer, usage_in: UsageIn) -> AsyncGenerator[bytes]:
    def one(chunk: Answer) -> bytes:
        chunk.usage = choices.usage() if usage_in == "all" else None
        return event(chunk)

    texts = _TextEvents(writer)

    for chunk in writer.first():
        yield one(chunk)
    async for piece in choices.pieces():
        # The text's last piece and the reason of its end are chunks of their own, as clients expect.
        if piece.text or piece.logprobs:
            is_text_alone = usage_in != "all" and not piece.logprobs
            yield texts.event(piece) if is_text_alone else one(writer.chunk(piece._replace(finish_reason=None)))
        if piece.finish_reason is not None:
            yield one(writer.chunk(piece._replace(text="", tokens=(), logprobs=())))
    if usage_in != "none":
        yield event(writer.usage())
    yield DONE


class _TextEvents:
    """Makes events for chunks that have text alone, from one serialized template for each choice."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._around: dict[int, list[bytes]] = {}

    def event(self, piece: Piece) -> bytes:
        """Returns the event for a piece of text."""
        around = self._around.get(piece.choice)
        if around is None:
            marked = event(self._writer.chunk(Piece(piece.choice, _MARK, (), (), None)))
            around = self._around[piece.choice] = marked.split(to_json(_MARK))
        before, after = around
        return before + to_json(piece.text) + after


async def _collected(choices: Choices, writer: Writer) -> list[Finished]:
    finished = [Finished() for _ in range(choices.count)]
    async for piece in choices.pieces():
        one = finished[piece.choice]
        one.text.append(piece.text)
        if (logprobs := writer.logprobs(piece)) is not None:
            one.logprobs.add(logprobs)
        one.finish_reason = piece.finish_reason or one.finish_reason
    return finished
