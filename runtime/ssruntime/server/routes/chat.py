"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ssruntime.logprobs import TokenLogprob
from ssruntime.server.choices import Choices, Piece
from ssruntime.server.prompts import as_chat
from ssruntime.server.routes.access import FAILURES, Key, KeyedRoute, Served
from ssruntime.server.routes.answer import Asked, Finished, head_of, respond
from ssruntime.server.schema.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatRequest,
    ChatResponse,
    ChatTokenLogprob,
    Delta,
    TopLogprob,
)
from ssruntime.server.service import Service

router = APIRouter(route_class=KeyedRoute)


@router.post("/v1/chat/completions", response_model=ChatResponse, responses=FAILURES)
async def complete_chat(body: ChatRequest, request: Request, service: Served, key: Key) -> Response:
    """Answers a conversation with the assistant's next turn; with `stream`, as server-sent events."""
    return await respond(request, service, key, body, partial(_asked, body, service))


def _asked(body: ChatRequest, service: Service) -> Asked:
    tools = None if body.tool_choice == "none" else body.tools
    chat = as_chat(body.messages, tools=tools, documents=body.documents, variables=body.chat_template_kwargs)
    # OpenAI's limit is the context, where none is given.
    most = body.max_completion_tokens or body.max_tokens or service.max_context
    config = body.generation_config(max_new_tokens=most, logprobs=body.logprob_count)
    return Asked([chat], config, lambda choices: ChatWriter(service, choices, has_logprobs=bool(body.logprobs)))


class ChatWriter:
    """Puts completions into the form of this endpoint; see `answer.Writer`."""

    def __init__(self, service: Service, choices: Choices, *, has_logprobs: bool) -> None:
        self._service = service
        self._choices = choices
        self._has_logprobs = has_logprobs
        self._head = head_of(service, "chatcmpl")

    def first(self) -> Sequence[ChatChunk]:
        """Returns a chunk for each choice that says whose turn it is."""
        return [
            self._chunk([ChatChunkChoice(index=index, delta=Delta(role="assistant", content=""))]) for index in range(self._choices.count)
        ]

    def chunk(self, piece: Piece) -> ChatChunk:
        """Returns the chunk for a piece."""
        delta = Delta(content=piece.text) if piece.finish_reason is None else Delta()
        found = self.logprobs(piece) if piece.finish_reason is None else None
        return self._chunk([ChatChunkChoice(index=piece.choice, delta=delta, logprobs=found, finish_reason=piece.finish_reason)])

    def usage(self) -> ChatChunk:
        """Returns the chunk that has the usage."""
        chunk = self._chunk([])
        chunk.usage, chunk.metrics = self._choices.usage(), self._choices.figures()
        return chunk

    def whole(self, finished: Sequence[Finished]) -> ChatResponse:
        """Returns the response with all choices, but without log probabilities."""
        return ChatResponse(
            **self._head,
            choices=[
                ChatChoice(index=index, message=AssistantMessage(content="".join(one.text)), finish_reason=one.finish_reason)
                for index, one in enumerate(finished)
            ],
            usage=self._choices.usage(),
            metrics=self._choices.figures(),
        )

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(**self._head, choices=choices)

    def logprobs(self, piece: Piece) -> ChatLogprobs | None:
        """Returns the log probabilities of a piece; None if none were asked for."""
        if not self._has_logprobs:
            return None
        return ChatLogprobs(content=[self._entry(token, one) for token, one in zip(piece.tokens, piece.logprobs, strict=True)])

    def _entry(self, token: int, one: TokenLogprob) -> ChatTokenLogprob:
        own = self._top(token, one.logprob)
        return ChatTokenLogprob(own.token, own.logprob, own.bytes, [self._top(*other) for other in one.top])

    def _top(self, token: int, logprob: float) -> TopLogprob:
        content = self._service.token_bytes(token)
        return TopLogprob(content.decode(errors="replace"), logprob, list(content))
