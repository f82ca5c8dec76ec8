"""The server's state, and what its endpoints do with the engine."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Sequence
from typing import Final

from ssruntime.artifact import Manifest
from ssruntime.config import GenerationConfig
from ssruntime.config.generation import SEED_LIMIT
from ssruntime.errors import QueueFullError, SelfSpecError
from ssruntime.preparation import Request
from ssruntime.server.choices import Choices
from ssruntime.server.errors import ApiError, api_error, stopping, unknown_model
from ssruntime.server.metrics import ServerMetrics
from ssruntime.server.served_engine import RunningRequest, ServedEngine
from ssruntime.server.settings import ServerSettings
from ssruntime.text.codec import PromptCodec
from ssruntime.text.prompt import Prompt

_FOLLOWING: Final = 0.2
"""Weight of the newest request in the mean duration."""


class Service:
    """A served engine.

    Attributes:
        engine: the engine.
        settings: the server's settings.
        metrics: its metrics.
        names: names of the model; the first one is reported.
        created: Unix time at which the server was made, in seconds.
        fingerprint: tells artifacts apart.
    """

    def __init__(self, engine: ServedEngine, settings: ServerSettings) -> None:
        """Takes an engine."""
        artifact = engine.preparer.artifact
        self.engine = engine
        self.settings = settings
        self.names = settings.model_names or (artifact.folder.resolve().name,)
        self.created = int(time.time())
        self.fingerprint = f"sstool-{_digest(artifact.manifest)}"
        self.metrics = ServerMetrics(
            self.names[0], running=lambda: engine.running, waiting=lambda: engine.waiting, kv_usage=lambda: engine.kv_usage
        )
        self._mean_seconds = 1.0
        self._open: set[Choices] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_stopping = False

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return not self._is_stopping

    @property
    def codec(self) -> PromptCodec:
        """The tokenizer and chat template."""
        return self.engine.preparer.codec

    @property
    def max_context(self) -> int:
        """The most tokens of a prompt and its completion."""
        return self.engine.preparer.max_context

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes that a token stands for."""
        return self.codec.token_bytes.of(token)

    def token_text(self, token: int) -> str:
        """Returns the text that a token stands for; an incomplete character is shown as U+FFFD."""
        return self.token_bytes(token).decode(errors="replace")

    def check_model(self, name: str | None) -> None:
        """Checks the name of the model in a request.

        Raises:
            ApiError: if it is not served.
        """
        if name is not None and name not in self.names:
            raise unknown_model(name, self.names)

    def check_room(self, choices: int) -> None:
        """Checks that there is room for the completions of a request.

        Raises:
            ApiError: if too many are asked for, or requests wait already, or the server stops.
        """
        most = self.engine.max_requests
        if choices > most:
            raise ApiError(400, f"{choices} completions are asked for; this server takes at most {most}", param="n", code="invalid_value")
        if self._is_stopping:
            raise stopping()
        # Again in `begin`: prompts are not encoded for requests that have no place.
        if self.engine.running + self.engine.waiting + choices > most:
            raise api_error(
                QueueFullError(f"{self.engine.waiting} requests wait already", "try again later"), retry_after=self._expected_wait()
            )

    async def prepare(self, prompt: Prompt, config: GenerationConfig, *, choices: int, key: str) -> list[Request]:
        """Returns a checked request for each choice. Choice i has the seed of the settings plus i.

        Args:
            prompt: the prompt.
            config: the settings.
            choices: number of completions.
            key: name of the API key that asks.

        Raises:
            SelfSpecError: if prompt or settings cannot be used.
        """
        namespace = "" if self.settings.share_prefixes else key
        first = await self.engine.prepare(prompt, config, prefix_namespace=namespace)
        seeds = ((first.settings.seed + index) % SEED_LIMIT for index in range(choices))
        return [first._replace(settings=dataclasses.replace(first.settings, seed=seed)) for seed in seeds]

    def begin(self, requests: Sequence[Request], *, arrived: float) -> Choices:
        """Begins all of these requests, or none.

        Args:
            requests: a request for each choice.
            arrived: time of `time.perf_counter` at which the HTTP request came.

        Raises:
            ApiError: if too many requests wait already, or the server stops.
        """
        if self._is_stopping:
            raise stopping()
        running: list[RunningRequest] = []
        try:
            for request in requests:
                running.append(self.engine.start(request, timeout=self.settings.request_timeout))  # noqa: PERF401 - keeps those before an error
        except SelfSpecError as err:
            for one in running:
                one.cancel()
            raise api_error(err, retry_after=self._expected_wait()) from err
        choices = Choices(requests, running, arrived=arrived, metrics=self.metrics, on_end=self._forget)
        self._open.add(choices)
        self._idle.clear()
        return choices

    async def stop(self) -> None:
        """Refuses new requests; ends those that still run after the grace time; closes the engine."""
        self._is_stopping = True
        try:
            async with asyncio.timeout(self.settings.grace):
                await self._idle.wait()
        except TimeoutError:
            self.cancel_all()
        await self.engine.close()

    def cancel_all(self) -> None:
        """Ends all requests."""
        for choices in list(self._open):
            choices.cancel()

    def refuse(self) -> None:
        """Refuses new requests from now on."""
        self._is_stopping = True

    def _forget(self, choices: Choices, seconds: float | None) -> None:
        self._open.discard(choices)
        if not self._open:
            self._idle.set()
        if seconds is not None:
            self._mean_seconds += _FOLLOWING * (seconds - self._mean_seconds)

    def _expected_wait(self) -> float:
        """Returns the seconds after which a place in the queue is expected to be free."""
        return self._mean_seconds / max(1, self.engine.running)


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(manifest.to_json().encode()).hexdigest()[:12]
