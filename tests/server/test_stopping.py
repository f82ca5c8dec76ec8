"""A server that stops takes no more requests, and lets running ones finish within the grace time."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

import httpx2

from ssruntime import AsyncEngine, load
from ssruntime.server import create_app
from tests.server.conftest import serving, wait_for

LONG = {"prompt": "abc", "max_tokens": 2900, "ignore_eos": True, "stream": True}


def test_running_requests_finish(artifact: Path) -> None:
    with serving(artifact) as one, one.client.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()
        next(lines)
        one.stop()
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        one.thread.join(60)
        with contextlib.suppress(httpx2.TransportError):
            raise AssertionError(one.client.get("/health").status_code)


def test_requests_that_outlast_the_grace_time_get_an_error(artifact: Path) -> None:
    with serving(artifact, grace=0.0) as one:
        texts: list[str] = []

        def read() -> None:
            with one.client.stream("POST", "/v1/completions", json=LONG) as answer:
                texts.extend(answer.iter_lines())

        threads = [threading.Thread(target=read) for _ in range(3)]  # two run, one waits
        for thread in threads:
            thread.start()
        wait_for(lambda: one.service.engine.running + one.service.engine.waiting == 3)
        one.stop()
        for thread in threads:
            thread.join(60)
    errors = [json.loads(line.removeprefix("data: "))["error"] for line in texts if "error" in line]
    assert [error["code"] for error in errors] == ["stopping"] * 3
    assert "data: [DONE]" not in texts


def test_a_request_that_is_not_finished_in_time_fails(artifact: Path) -> None:
    with serving(artifact, request_timeout=0.02) as one:
        answer = one.client.post("/v1/completions", json=LONG | {"stream": False})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")
        lines = [line for line in one.client.post("/v1/completions", json=LONG).text.split("\n\n") if line]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout"


def test_the_application_runs_what_is_given(artifact: Path) -> None:
    with load(artifact, threads=1) as engine:
        requests = AsyncEngine(engine, max_waiting=3)
        assert create_app(requests).state.service.engine is requests
        assert create_app(engine, max_waiting=5).state.service.engine.max_requests == engine.max_sequences + 5
