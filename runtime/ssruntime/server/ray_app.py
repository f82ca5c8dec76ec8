"""An application for Ray Serve: replicas with an engine each, behind a front that has the endpoints.

The front holds the clients' connections. If a replica dies, another one resumes its requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ssruntime.artifact import read_artifact
from ssruntime.async_engine import AsyncEngine
from ssruntime.config import GenerationConfig
from ssruntime.engine import load
from ssruntime.errors import BackendUnavailableError
from ssruntime.preparation import Preparer, Request, context_limit
from ssruntime.request_queue import ChunkQueue, Places
from ssruntime.results import Chunk
from ssruntime.scheduler.single import TIMEOUT
from ssruntime.server.app import create_app
from ssruntime.server.resumed import resumed
from ssruntime.server.settings import ServerSettings
from ssruntime.text.prompt import Prompt

ATTEMPTS: Final = 5
"""How often a request may begin: each replica that dies takes one."""
_DEAD: Final = (RayActorError, RayServeException)
"""What Ray raises where a replica died or cannot be reached."""


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """How many replicas run, and what each of them takes.

    Attributes:
        min_replicas: fewest replicas.
        max_replicas: most replicas: more start when requests wait.
        max_sequences: requests that a replica runs at once.
        max_waiting: requests that may wait, in all; further ones get status 429.
        threads: threads of each engine, for which Ray reserves as many processors; at least 1.
        max_context: most tokens of a sequence; None for the artifact's limit, at most 4096.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    max_sequences: int = 4
    max_waiting: int = 64
    threads: int = 1
    max_context: int | None = None

    def places(self) -> Places:
        """Returns the places of requests, on all replicas together."""
        return Places(self.max_replicas * self.max_sequences, self.max_waiting)


class EngineReplica:
    """A process with an open engine."""

    def __init__(self, artifact: str, settings: RaySettings) -> None:
        """Opens the artifact."""
        self._engine = load(artifact, threads=settings.threads, max_sequences=settings.max_sequences, max_context=settings.max_context)
        self._engine.warm_up()
        self._requests = AsyncEngine(self._engine, max_waiting=settings.max_waiting)

    async def run(self, request: Request, seconds: float | None) -> AsyncGenerator[Chunk]:
        """Yields the chunks of a request, within these seconds; cancelling ends it in one pass."""
        async with contextlib.aclosing(self._requests.stream(request, timeout=seconds)) as chunks:
            async for chunk in chunks:
                yield chunk


class RemoteEngine:
    """The replicas, as the engine of a server; see `ssruntime.server.served_engine`."""

    def __init__(self, preparer: Preparer, replicas: DeploymentHandle[Any], settings: RaySettings) -> None:
        """Takes the handle of the replicas' deployment."""
        self.preparer = preparer
        self._places = settings.places()
        self._replicas = replicas.options(stream=True)

    @property
    def max_requests(self) -> int:
        """The most requests that run and wait together."""
        return self._places.limit

    @property
    def running(self) -> int:
        """The number of requests that replicas run, if all replicas have started."""
        return self._places.running

    @property
    def waiting(self) -> int:
        """The number of other requests."""
        return self._places.waiting

    @property
    def kv_usage(self) -> float:
        """The share, 0 to 1, of the sequences in use."""
        return self._places.running / self._places.capacity

    async def prepare(self, prompt: Prompt | Request, config: GenerationConfig | None = None, *, prefix_namespace: str = "") -> Request:
        """Returns a checked request."""
        return await asyncio.to_thread(self.preparer.prepare, prompt, config, prefix_namespace=prefix_namespace)

    def start(self, request: Request, *, timeout: float | None = None) -> RemoteRequest:
        """Begins a request on a replica.

        Raises:
            QueueFullError: if too many requests wait already.
        """
        self._places.take()
        deadline = None if timeout is None else time.monotonic() + timeout
        return RemoteRequest(self._chunks(request, deadline), timeout, self._places.give_back)

    async def close(self) -> None:
        """Returns at once: Ray ends the replicas."""

    async def _chunks(self, request: Request, deadline: float | None) -> AsyncGenerator[Chunk]:
        try:
            async with contextlib.aclosing(resumed(lambda: self._attempt(request, deadline), _DEAD, attempts=ATTEMPTS)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except _DEAD as err:
            raise BackendUnavailableError(f"each of the {ATTEMPTS} replicas that ran this request died", "send the request again") from err

    async def _attempt(self, request: Request, deadline: float | None) -> AsyncGenerator[Chunk]:
        """Yields the chunks of a request from one replica."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        found = self._replicas.run.remote(request, left)
        try:
            async for chunk in found:
                yield chunk
        except _DEAD:
            raise
        except BaseException:  # nobody reads any more; Ray ends by itself only what belongs to a closed connection
            found.cancel()
            raise


class RemoteRequest(ChunkQueue):
    """A request on a replica, as an iterator over its chunks."""

    def __init__(self, chunks: AsyncGenerator[Chunk], timeout: float | None, on_end: Callable[[], None]) -> None:
        """Begins to read.

        Args:
            chunks: the chunks.
            timeout: seconds that the request may take, with its time in Ray's queues; None sets no limit.
            on_end: called once no replica runs the request any more.
        """
        super().__init__()
        self._task = asyncio.create_task(self._read(chunks, timeout))
        self._on_end = on_end
        self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        """Ends the request; of no effect after its end."""
        self._task.cancel()

    def _end(self, _: asyncio.Task[None]) -> None:
        self._on_end()
        self.end()

    async def _read(self, chunks: AsyncGenerator[Chunk], seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds), contextlib.aclosing(chunks):
                async for chunk in chunks:
                    self.put(chunk)
        except TimeoutError:
            self.put(Chunk("", (), TIMEOUT))
        except Exception as err:  # noqa: BLE001 - the reader gets it
            self.put(err)


class Front:
    """The endpoints, without an engine of its own."""

    def __init__(self, artifact: str, replicas: DeploymentHandle[Any], settings: RaySettings, server: ServerSettings) -> None:
        """Reads what is needed to check requests."""
        self._engine = RemoteEngine(_preparer(Path(artifact), settings), replicas, settings)
        self._server = server

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Returns the application."""
        return create_app(self._engine, self._server)


def ray_app(artifact: str | Path, settings: RaySettings | None = None, server: ServerSettings | None = None) -> serve.Application:
    """Returns an application for `ray.serve.run`, with OpenAI's endpoints.

    Args:
        artifact: folder of the artifact, which every node must have.
        settings: replicas and their sizes.
        server: settings of the endpoints.
    """
    settings = settings or RaySettings()
    folder = str(Path(artifact).resolve())
    replicas = serve.deployment(
        name="engine",
        max_ongoing_requests=settings.max_sequences,
        ray_actor_options={"num_cpus": settings.threads},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.max_sequences,
        },
    )(EngineReplica)
    # Monitors must get an answer while all places of requests are taken.
    front = serve.deployment(name="front", max_ongoing_requests=2 * settings.places().limit + 100, ray_actor_options={"num_cpus": 0})(
        serve.ingress()(Front)
    )
    return front.bind(folder, replicas.bind(folder, settings), settings, server or ServerSettings())


def _preparer(folder: Path, settings: RaySettings) -> Preparer:
    artifact = read_artifact(folder)
    return Preparer(artifact, artifact.manifest.draft(None), context_limit(artifact.manifest, settings.max_context))
