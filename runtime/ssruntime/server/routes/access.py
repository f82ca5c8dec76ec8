"""What every endpoint gets: the service, and the name of the API key that the request gave."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from ssruntime.server.errors import ApiError
from ssruntime.server.schema.chat import ChatRequest
from ssruntime.server.schema.completions import CompletionRequest
from ssruntime.server.schema.errors import ErrorResponse
from ssruntime.server.service import Service

_SCHEME: Final = "bearer"
_REFUSED: Final = {"WWW-Authenticate": "Bearer", "Connection": "close"}
"""The connection closes, so that the server need not read the body to find the next request."""
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


class KeyedRoute(APIRoute):
    """A route that needs a valid API key, if the server has keys, before it reads a request's body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns what answers a request."""
        answered = super().get_route_handler()

        async def checked(request: Request) -> Response:
            check_key(request)
            return await answered(request)

        return checked


def check_key(request: Request) -> None:
    """Keeps the name of the request's API key, if the server has keys.

    Raises:
        ApiError: if the request gives no valid key.
    """
    keys = the_service(request).settings.api_keys
    if not keys:
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    name = keys.find(key.strip()) if scheme.lower() == _SCHEME else None
    if name is None:
        raise ApiError(401, "no valid API key was given", code="invalid_api_key", headers=_REFUSED)
    request.state.key = name


def name_of_key(request: Request) -> str:
    """Returns the name of the API key of a request to a `KeyedRoute`; empty if none is needed."""
    name: str = getattr(request.state, "key", "")
    return name


def remember(request: Request, service: Service, body: CompletionRequest | ChatRequest) -> None:
    """Keeps what the access log writes of a request's body."""
    request.state.user = body.user
    if service.settings.log_prompts:
        request.state.prompt = body.model_dump(include={"prompt", "messages"}, exclude_none=True)


Served = Annotated[Service, Depends(the_service)]
Key = Annotated[str, Depends(name_of_key)]
