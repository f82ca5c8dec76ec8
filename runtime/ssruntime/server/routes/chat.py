"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ssruntime.logprobs import TokenLogprob
from ssruntime.server.choices import Choices, FinishReason, Piece
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
        found = self._logprobs(piece.tokens, piece.logprobs) if piece.finish_reason is None else None
        return self._chunk([ChatChunkChoice(index=piece.choice, delta=delta, logprobs=found, finish_reason=piece.finish_reason)])

    def usage(self) -> ChatChunk:
        """Returns the chunk that has the usage."""
        chunk = self._chunk([])
        chunk.usage, chunk.metrics = self._choices.usage(), self._choices.figures()
        return chunk

    def whole(self, finished: Sequence[Finished]) -> ChatResponse:
        """Returns the response with all choices."""
        return ChatResponse(
            **self._head,
            choices=[self._choice(index, one, one.finish_reason) for index, one in enumerate(finished)],
            usage=self._choices.usage(),
            metrics=self._choices.figures(),
        )

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(**self._head, choices=choices)

    def _choice(self, index: int, one: Finished, reason: FinishReason) -> ChatChoice:
        message = AssistantMessage(content="".join(one.text))
        return ChatChoice(index=index, message=message, logprobs=self._logprobs(one.tokens, one.logprobs), finish_reason=reason)

    def _logprobs(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        if not self._has_logprobs:
            return None
        return ChatLogprobs(
            content=[
                ChatTokenLogprob(**self._top(token, one.logprob).model_dump(), top_logprobs=[self._top(*other) for other in one.top])
                for token, one in zip(tokens, logprobs, strict=True)
            ]
        )

    def _top(self, token: int, logprob: float) -> TopLogprob:
        return TopLogprob(token=self._service.token_text(token), logprob=logprob, bytes=list(self._service.token_bytes(token)))
