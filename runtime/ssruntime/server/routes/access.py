"""What every endpoint gets: the service, and the name of the API key that the request gave."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import Depends, Request

from ssruntime.server.errors import ApiError
from ssruntime.server.schema.chat import ChatRequest
from ssruntime.server.schema.completions import CompletionRequest
from ssruntime.server.schema.errors import ErrorResponse
from ssruntime.server.service import Service

_SCHEME: Final = "bearer"
FAILURES: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorResponse, "description": about}
    for status, about in {
        400: "The request cannot be followed; the message says why.",
        401: "No valid API key was given.",
        404: "The model is not served here.",
        408: "The body did not come in time.",
        413: "The body is too large.",
        429: "Too many requests wait already.",
        500: "The server failed.",
        503: "The server stops, or the request was not finished in time.",
    }.items()
}
"""Documentation of the errors of endpoints for models."""


def the_service(request: Request) -> Service:
    """Returns the service of the application."""
    service: Service = request.app.state.service
    return service


async def authorized(request: Request) -> str:
    """Returns the name of the request's API key; empty if none is needed.

    Raises:
        ApiError: if the request gives no valid key.
    """
    keys = the_service(request).settings.api_keys
    if not keys:
        return ""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    name = keys.find(key.strip()) if scheme.lower() == _SCHEME else None
    if name is None:
        raise ApiError(401, "no valid API key was given", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
    request.state.key = name
    return name


def remember(request: Request, service: Service, body: CompletionRequest | ChatRequest) -> None:
    """Keeps what the access log writes of a request's body."""
    request.state.user = body.user
    if service.settings.log_prompts:
        request.state.prompt = body.model_dump(include={"prompt", "messages"}, exclude_none=True)


Served = Annotated[Service, Depends(the_service)]
Key = Annotated[str, Depends(authorized)]
KEY_NEEDED: Final = Depends(authorized)
"""For endpoints that need a valid key, but not its name."""
