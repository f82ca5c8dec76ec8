"""`POST /v1/completions`."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import partial
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ssruntime.server.choices import Choices, Piece
from ssruntime.server.errors import ApiError
from ssruntime.server.routes.access import FAILURES, Key, KeyedRoute, Served
from ssruntime.server.routes.answer import Asked, Finished, head_of, respond
from ssruntime.server.schema.completions import CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionResponse
from ssruntime.server.service import Service

DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's default for this endpoint."""

router = APIRouter(route_class=KeyedRoute)


@router.post("/v1/completions", response_model=CompletionResponse, responses=FAILURES)
async def complete(body: CompletionRequest, request: Request, service: Served, key: Key) -> Response:
    """Continues one or more texts; with `stream`, as server-sent events."""
    return await respond(request, service, key, body, partial(_asked, body, service))


def _asked(body: CompletionRequest, service: Service) -> Asked:
    if not body.prompts:
        raise ApiError(400, "prompt: the list is empty", param="prompt", code="invalid_value")
    config = body.generation_config(max_new_tokens=body.max_tokens or DEFAULT_MAX_TOKENS, logprobs=body.logprobs)
    return Asked(body.prompts, config, lambda choices: CompletionWriter(service, choices, body))


class CompletionWriter:
    """Puts completions into the form of this endpoint; see `answer.Writer`."""

    def __init__(self, service: Service, choices: Choices, body: CompletionRequest) -> None:
        self._service = service
        self._choices = choices
        self._has_logprobs = body.logprobs is not None
        self._hidden = service.codec.special_tokens.keys() if body.skip_special_tokens else ()
        self._head = head_of(service, "cmpl")
        self._offsets = [0] * choices.count
        # A character may be spread over several tokens: an offset counts the whole ones before the token.
        self._decoders = [codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in range(choices.count)]

    def first(self) -> Sequence[CompletionResponse]:
        """Returns no chunks."""
        return ()

    def chunk(self, piece: Piece) -> CompletionResponse:
        """Returns the chunk for a piece."""
        found = self.logprobs(piece) if piece.tokens or piece.finish_reason is None else None
        return self._response([CompletionChoice(index=piece.choice, text=piece.text, logprobs=found, finish_reason=piece.finish_reason)])

    def usage(self) -> CompletionResponse:
        """Returns the chunk that has the usage."""
        return self._with_usage(self._response([]))

    def whole(self, finished: Sequence[Finished]) -> CompletionResponse:
        """Returns the response with all choices, but without log probabilities."""
        choices = [
            CompletionChoice(index=index, text="".join(one.text), finish_reason=one.finish_reason) for index, one in enumerate(finished)
        ]
        return self._with_usage(self._response(choices))

    def _response(self, choices: list[CompletionChoice]) -> CompletionResponse:
        return CompletionResponse(**self._head, choices=choices)

    def _with_usage(self, response: CompletionResponse) -> CompletionResponse:
        response.usage, response.metrics = self._choices.usage(), self._choices.figures()
        return response

    def logprobs(self, piece: Piece) -> CompletionLogprobs | None:
        """Returns the log probabilities of a piece; None if none were asked for."""
        if not self._has_logprobs:
            return None
        index, text_of = piece.choice, self._service.token_text
        found = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token, one in zip(piece.tokens, piece.logprobs, strict=True):
            text = text_of(token)
            found.tokens.append(text)
            found.token_logprobs.append(one.logprob)
            top: dict[str, float] = {}
            for other, logprob in one.top:  # the best first: of tokens with the same text, the best one stays
                top.setdefault(text_of(other), logprob)
            top[text] = one.logprob  # as OpenAI's API does: there may be one entry more than was asked for
            found.top_logprobs.append(top)
            found.text_offset.append(self._offsets[index])
            if token not in self._hidden:
                self._offsets[index] += len(self._decoders[index].decode(self._service.token_bytes(token)))
        return found
