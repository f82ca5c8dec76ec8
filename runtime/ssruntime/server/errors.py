"""Errors in the shape and with the status that OpenAI's clients expect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ssruntime.errors import BackendUnavailableError, ConfigError, ContextOverflowError, PromptError, QueueFullError, SelfSpecError
from ssruntime.server.schema.errors import ErrorBody, ErrorResponse
from ssruntime.text.printable import printable

_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
MAX_MESSAGE: Final = 1000
"""Most characters of an error's message."""
MAX_SHOWN: Final = 200
"""Most characters of a value from a request that an error message repeats."""


class ApiError(HTTPException):
    """An error that a client gets.

    Attributes:
        body: content of the response.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        message = printable(message, MAX_MESSAGE)
        super().__init__(status, message, dict(headers or {}))
        kind = _TYPES.get(status, "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "internal_error")
        self.body = ErrorResponse(error=ErrorBody(message=message, type=kind, param=param, code=code))

    def response(self) -> JSONResponse:
        """Returns the HTTP response."""
        return JSONResponse(self.body.model_dump(), self.status_code, self.headers)


def api_error(error: SelfSpecError, *, retry_after: float = 1.0) -> ApiError:
    """Returns what a client gets for an error of the engine.

    Args:
        error: the error.
        retry_after: seconds after which a client may try again, if the engine is busy.
    """
    if isinstance(error, BackendUnavailableError):
        status, code = (429, "queue_full") if isinstance(error, QueueFullError) else (503, "unavailable")
        return ApiError(status, str(error), code=code, headers={"Retry-After": str(max(1, math.ceil(retry_after)))})
    if not isinstance(error, PromptError | ConfigError):  # the artifact or the machine, not the request
        return engine_failed(error)
    return ApiError(400, str(error), code="context_length_exceeded" if isinstance(error, ContextOverflowError) else None)


def engine_failed(cause: Exception) -> ApiError:
    """Returns the error for a failure that is not the request's; the log gets its cause."""
    failure = ApiError(500, "the engine failed; the server's log has the cause", code="engine_failed")
    failure.__cause__ = cause
    return failure


def stopping(message: str = "this server is stopping") -> ApiError:
    """Returns the error for a request that the server does not take, or end, because it stops."""
    return ApiError(503, message, code="stopping", headers={"Retry-After": "1"})


def unknown_model(name: str, known: Sequence[str]) -> ApiError:
    """Returns the error for a model that is not served."""
    return ApiError(
        404,
        f"the model {printable(name, MAX_SHOWN)!r} is not served here; served: {', '.join(known)}",
        param="model",
        code="model_not_found",
    )


def invalid_request(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Returns the error for a body that does not fit the schema.

    Args:
        errors: pydantic's list of errors, at least one.
    """
    # A value that fits no kind of a union has an error for each of them: one about its content says the most.
    first = next((error for error in errors if not error["type"].endswith("_type")), errors[0])
    if first["type"] == "extra_forbidden":
        name = printable(".".join(str(part) for part in first["loc"] if part != "body"), MAX_SHOWN)
        return ApiError(400, f"unknown parameter: {name!r}", param=name, code="unknown_parameter")
    is_union = first["type"].endswith("_type") and any(_is_kind(part) for part in first["loc"])
    where = [str(part) for part in first["loc"] if part != "body" and not _is_kind(part)]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']} at character {where[0]}", code="invalid_json")
    param = printable(".".join(where[:1] if is_union else where), MAX_SHOWN) or None
    message = "the value has the wrong type" if is_union else str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{param or 'the body'}: {printable(message, MAX_SHOWN)}", param=param, code="invalid_value")


def _is_kind(part: str | int) -> bool:
    """Returns whether a part of a place names one kind of a union, and not a key."""
    return isinstance(part, str) and (part == "str" or part.startswith(("list[", "constrained-")))
