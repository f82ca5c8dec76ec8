"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from ssruntime.server.prompts import as_chat
from ssruntime.server.routes.access import FAILURES, KeyedRoute, Served
from ssruntime.server.schema.info import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse

router = APIRouter(route_class=KeyedRoute)


@router.post("/tokenize", response_model=TokenizeResponse, responses=FAILURES)
async def tokenize(body: TokenizeRequest, service: Served) -> TokenizeResponse:
    """Returns the tokens of a text or a chat, of any length."""
    service.check_model(body.model)
    if body.messages is not None:
        chat = as_chat(body.messages, tools=body.tools, variables=body.chat_template_kwargs)
        tokens = await asyncio.to_thread(service.codec.encode, chat)
    else:
        tokens = await asyncio.to_thread(service.codec.encode, body.prompt or "", add_special_tokens=body.add_special_tokens)
    names = [service.token_text(token) for token in tokens] if body.return_token_strs else None
    return TokenizeResponse(count=len(tokens), max_model_len=service.max_context, tokens=tokens, token_strs=names)


@router.post("/detokenize", response_model=DetokenizeResponse, responses=FAILURES)
async def detokenize(body: DetokenizeRequest, service: Served) -> DetokenizeResponse:
    """Returns the text of tokens."""
    service.check_model(body.model)
    return DetokenizeResponse(prompt=await asyncio.to_thread(service.codec.decode, body.tokens))
