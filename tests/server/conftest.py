"""Fixtures for tests of the server: a real HTTP server over scripted engines."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ssruntime import load
from ssruntime.engine import Engine
from ssruntime.server import Server, ServerSettings, create_app
from ssruntime.server.service import Service
from tests.runtime.scripted import random_script, write_artifact

CONTEXT = 3000
VOCAB = 60
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }}.{% endfor %}{% if tools %}T{{ tools | length }}{% endif %}a:"
)
"""Writes the first letter of the role, the content and a full stop, and the number of tools."""


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        engine: its engine.
        service: its state.
        url: its address.
        client: HTTP client for it.
        stop: begins to stop it.
        thread: thread that runs it.
    """

    engine: Engine
    service: Service
    url: str
    client: httpx2.Client
    stop: Callable[[], None]
    thread: threading.Thread

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return int(self.url.rpartition(":")[2])


Serve = Callable[..., contextlib.AbstractContextManager[Served]]


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scripted artifact with a draft and a chat template."""
    script = random_script(41, vocab=VOCAB, history=True, agreement=0.85, scale=2.0)
    return write_artifact(tmp_path_factory.mktemp("served") / "scripted", script, max_context=CONTEXT, chat_template=TEMPLATE)


@contextlib.contextmanager
def serving(folder: Path, *, max_waiting: int = 64, max_sequences: int = 2, **settings: object) -> Iterator[Served]:
    """Serves an artifact in a thread."""
    with load(folder, threads=1, max_sequences=max_sequences) as engine:
        engine.warm_up()
        app = create_app(engine, ServerSettings(**settings), max_waiting=max_waiting)  # type: ignore[arg-type]
        server = Server(app, "127.0.0.1", 0)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            with httpx2.Client(base_url=server.url, timeout=60, trust_env=False) as client:
                wait_for(lambda: client.get("/ready").status_code == 200)
                yield Served(engine, app.state.service, server.url, client, server.stop, thread)
        finally:
            server.stop()
            thread.join(60)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds; fails after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "this did not happen within a minute"
        time.sleep(0.01)


def events(served: Served, path: str = "/v1/completions", **body: Any) -> list[Any]:
    """Returns the data of a stream's events, of which the last one must be [DONE]."""
    with served.client.stream("POST", path, json={"stream": True} | body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = answer.read().decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


@pytest.fixture(scope="session")
def served(artifact: Path) -> Iterator[Served]:
    """A server that all tests share."""
    with serving(artifact) as one:
        yield one
