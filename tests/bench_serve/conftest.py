"""Fixtures of the load test's tests: a scripted server, prompts, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bench_serve.scripted_server import COMPLETIONS, GOOD, MODELS, ScriptedServer, lists_models, running, streams
from tests.cli.conftest import Command, sstool

__all__ = ["Command", "sstool"]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the requests of tests on this machine."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """Returns a server of one model that answers each completion with "Hello", 5 tokens in 2 chunks."""
    with running(ScriptedServer(answers={MODELS: lists_models("small"), COMPLETIONS: streams(*GOOD)})) as server:
        yield server


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes a file of prompts."""

    def write(*lines: object) -> Path:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def three(prompts: Callable[..., Path]) -> Path:
    """Returns a file of three texts."""
    return prompts({"id": "a", "prompt": "one"}, {"id": "b", "prompt": "two"}, {"id": "c", "prompt": "three"})
