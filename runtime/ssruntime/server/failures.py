"""What is done about a failed request beside the answer: it is counted and logged."""

from __future__ import annotations

import logging
from http import HTTPStatus

from starlette.requests import Request

from ssruntime.server.errors import ApiError
from ssruntime.server.service import Service

logger = logging.getLogger(__name__)


def note_failure(request: Request, error: ApiError) -> None:
    """Counts a failure, keeps its message for the access log, and logs the cause of an internal error."""
    service: Service = request.app.state.service
    service.metrics.add_failure(error.status_code)
    request.state.error = error.body.error.message
    if error.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("request %s failed", request.state.request_id, exc_info=error.__cause__)
