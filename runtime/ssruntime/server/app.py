"""The ASGI application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware

from ssruntime.async_engine import DEFAULT_MAX_WAITING, AsyncEngine
from ssruntime.engine import Engine
from ssruntime.errors import SelfSpecError
from ssruntime.server.access_log import AccessLog
from ssruntime.server.errors import ApiError, api_error, invalid_request
from ssruntime.server.failures import note_failure
from ssruntime.server.limits import ClientLimits
from ssruntime.server.routes import chat, completions, info, tokens
from ssruntime.server.served_engine import ServedEngine
from ssruntime.server.service import Service
from ssruntime.server.settings import ServerSettings

_MESSAGES: Final = {404: "there is no such path", 405: "this path does not take that method"}


def create_app(engine: Engine | ServedEngine, settings: ServerSettings | None = None, *, max_waiting: int = DEFAULT_MAX_WAITING) -> FastAPI:
    """Returns an ASGI application with OpenAI's endpoints, for any ASGI server.

    Args:
        engine: an open engine, which stays open when the application ends; or what runs requests instead.
        settings: settings of the server.
        max_waiting: most requests that wait for a free sequence of an `Engine`; further ones get status 429.
    """
    settings = settings or ServerSettings()
    served = AsyncEngine(engine, max_waiting=max_waiting) if isinstance(engine, Engine) else engine
    service = Service(served, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.stop()

    app = FastAPI(
        title="sstool", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False, separate_input_output_schemas=False
    )
    app.state.service = service
    for router in (completions.router, chat.router, info.models, info.router, tokens.router):
        app.include_router(router)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(SelfSpecError, _refused)
    app.add_middleware(ClientLimits, settings=settings)
    # Starlette puts the handler of other errors outside all middleware, where answers get no id.
    app.add_middleware(ServerErrorMiddleware, handler=_failed)
    app.add_middleware(AccessLog)
    _document_own_errors(app)
    return app


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if not isinstance(error, ApiError):
        error = ApiError(error.status_code, _MESSAGES.get(error.status_code, str(error.detail)), headers=error.headers)
    return _counted(request, error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _counted(request, invalid_request(error.errors()))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SelfSpecError)
    return _counted(request, api_error(error))


async def _failed(request: Request, error: Exception) -> JSONResponse:
    # ASGI servers close the connection, because they get the exception, too.
    failure = ApiError(500, "the server failed; its log has the cause", code="internal_error", headers={"Connection": "close"})
    failure.__cause__ = error
    return _counted(request, failure)


def _counted(request: Request, error: ApiError) -> JSONResponse:
    note_failure(request, error)
    return error.response()


def _document_own_errors(app: FastAPI) -> None:
    """Removes status 422 from the documentation, which only FastAPI's own handler for bad requests gives."""
    documented = app.openapi

    def openapi() -> dict[str, Any]:
        schema = documented()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to change the schema
