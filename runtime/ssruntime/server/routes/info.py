"""What the server is and how it does: models, health, version, metrics."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from ssruntime.server.errors import stopping, unknown_model
from ssruntime.server.routes.access import FAILURES, KeyedRoute, Served
from ssruntime.server.schema.info import Model, ModelList, Status, Version
from ssruntime.server.service import Service
from ssruntime.version import version as installed_version

router = APIRouter()
models = APIRouter(route_class=KeyedRoute)


@models.get("/v1/models", response_model=ModelList, responses=FAILURES)
async def list_models(service: Served) -> ModelList:
    """Lists the names under which the model is served."""
    return ModelList(data=[_model(service, name) for name in service.names])


@models.get("/v1/models/{name:path}", response_model=Model, responses=FAILURES)
async def show_model(name: str, service: Served) -> Model:
    """Describes a served model."""
    if name not in service.names:
        raise unknown_model(name, service.names)
    return _model(service, name)


@router.get("/health", response_class=Response, responses={200: {"description": "The process works.", "content": {}}})
async def health() -> Response:
    """Says that the process works, also while it stops."""
    return Response(status_code=200)


@router.get("/ready", response_model=Status, responses={503: FAILURES[503]})
async def ready(service: Served) -> Status:
    """Says whether the server takes requests."""
    if not service.is_ready:
        raise stopping()
    return Status()


@router.get("/version", response_model=Version)
async def version() -> Version:
    """Says which version runs."""
    return Version(version=installed_version())


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
async def metrics(service: Served) -> Response:
    """Returns the metrics in Prometheus's text format."""
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4")


def _model(service: Service, name: str) -> Model:
    return Model(id=name, created=service.created, max_model_len=service.max_context)
