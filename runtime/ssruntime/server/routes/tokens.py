"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import Response

from ssruntime.server.prompts import as_chat
from ssruntime.server.routes.access import FAILURES, KeyedRoute, Served
from ssruntime.server.schema.info import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from ssruntime.server.service import Service

router = APIRouter(route_class=KeyedRoute)


@router.post("/tokenize", response_model=TokenizeResponse, responses=FAILURES)
async def tokenize(body: TokenizeRequest, service: Served) -> Response:
    """Returns the tokens of a text or a chat, also of one that is too long for a completion."""
    service.check_model(body.model)
    return Response(await asyncio.to_thread(_tokenized, body, service), media_type="application/json")


@router.post("/detokenize", response_model=DetokenizeResponse, responses=FAILURES)
async def detokenize(body: DetokenizeRequest, service: Served) -> DetokenizeResponse:
    """Returns the text of tokens."""
    service.check_model(body.model)
    return DetokenizeResponse(prompt=await asyncio.to_thread(service.codec.decode, body.tokens))


def _tokenized(body: TokenizeRequest, service: Service) -> str:
    """Returns the whole response: it may have so many tokens that it must not be made in the event loop."""
    if body.messages is not None:
        tokens = service.codec.encode(as_chat(body.messages, tools=body.tools, variables=body.chat_template_kwargs))
    else:
        tokens = service.codec.encode(body.prompt or "", add_special_tokens=body.add_special_tokens)
    names = [service.token_text(token) for token in tokens] if body.return_token_strs else None
    found = TokenizeResponse(count=len(tokens), max_model_len=service.max_context, tokens=tokens, token_strs=names)
    return found.model_dump_json()
