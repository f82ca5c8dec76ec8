"""Fixtures for runtime tests: scripted engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from ssruntime.engine import Engine, load
from tests.runtime.scripted import Script, write_artifact

# On a busy machine, opening engines takes longer than hypothesis allows for an example. No test asserts on
# time.
settings.register_profile("runtime", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("runtime")

OpenScript = Callable[..., Engine]
"""Called with `(script, *, max_context=64, max_sequences=4, **arguments_of_write_artifact)`."""


@pytest.fixture(scope="session")
def open_script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenScript]:
    """A function that opens a scripted engine with one thread; it is closed when the session ends."""
    engines: list[Engine] = []

    def open_one(script: Script, *, max_context: int = 64, max_sequences: int = 4, **artifact: Any) -> Engine:
        folder = write_artifact(tmp_path_factory.mktemp("scripted") / "artifact", script, max_context=max_context, **artifact)
        engines.append(load(folder, threads=1, max_sequences=max_sequences))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()
