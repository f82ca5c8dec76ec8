"""Replicas on Ray Serve: a killed one loses no request, and one whose client is gone is free at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest

from ssruntime import GenerationConfig, load
from ssruntime.preparation import Request
from tests.conftest import REPOSITORY
from tests.server.conftest import wait_for

pytest.importorskip("ray", reason="Ray is not installed: pip install 'sstool[ray]'")
pytestmark = pytest.mark.slow

from ssruntime.server.ray_app import RaySettings, RemoteEngine  # noqa: E402 - it needs Ray

CALLERS = 8
TOKENS = 2000


@pytest.fixture(scope="module")
def url(artifact: Path) -> Iterator[str]:
    """The address of the recipe's server with two replicas."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(REPOSITORY / "recipes" / "ray_serve.py"), str(artifact), "--replicas", "2", "--port", str(port)]
    with subprocess.Popen(command, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}) as process:
        address = f"http://127.0.0.1:{port}"

        def is_ready() -> bool:
            assert process.poll() is None
            try:
                return httpx2.get(f"{address}/ready", trust_env=False, timeout=5).status_code == 200
            except httpx2.TransportError:
                return False

        wait_for(is_ready)
        yield address
        process.terminate()


def replicas() -> list[int]:
    """Returns the processes of the replicas that have an engine."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ServeReplica:default:engine" in process.read_bytes():
                found.append(int(process.parent.name))
        except OSError:
            continue
    return found


def test_a_closed_connection_frees_its_replica(url: str) -> None:
    long = {"prompt": "abc", "max_tokens": 2900, "ignore_eos": True, "stream": True, "n": 8, "logprobs": 20}

    def used() -> float:
        """Returns the seconds of processor time that the replicas have used."""
        fields = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in replicas()]
        return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")

    wait_for(lambda: len(replicas()) == 2)
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
        begun = used()
        assert client.post("/v1/completions", json=long | {"stream": False}).status_code == 200
        whole = used() - begun
        begun = used()
        with client.stream("POST", "/v1/completions", json=long) as answer:
            next(answer.iter_lines())
        time.sleep(5)
        assert used() - begun < whole / 2


def test_a_killed_replica_loses_nothing(artifact: Path, url: str) -> None:
    wait_for(lambda: len(replicas()) == 2)
    victim = replicas()[0]

    async def ask(client: httpx2.AsyncClient, seed: int) -> tuple[str, int, str]:
        body = {"prompt": "abc", "max_tokens": TOKENS, "seed": seed, "temperature": 0.8, "ignore_eos": True, "stream": True}
        text, reason = "", ""
        async with client.stream("POST", "/v1/completions", json=body | {"stream_options": {"include_usage": True}}) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if not line or line == "data: [DONE]":
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                for choice in chunk["choices"]:
                    text += choice["text"]
                    reason = choice["finish_reason"] or reason
                    if len(text) > TOKENS // 10 and seed == 0 and victim in replicas():
                        os.kill(victim, signal.SIGKILL)
                if not chunk.get("choices"):
                    return text, chunk["usage"]["completion_tokens"], reason
        raise AssertionError(f"the stream ended early: {text!r}")

    async def together() -> list[tuple[str, int, str]]:
        async with httpx2.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(CALLERS)))

    found = asyncio.run(together())
    assert victim not in replicas()
    with load(artifact, threads=1) as engine:
        configs = [GenerationConfig(max_new_tokens=TOKENS, seed=seed, temperature=0.8, ignore_eos=True) for seed in range(CALLERS)]
        expected = [engine.generate("abc", config).text for config in configs]
    assert found == [(text, TOKENS, "length") for text in expected]


class SilentReplica:
    """A handle whose replica never answers."""

    def __init__(self) -> None:
        self.cancelled = 0

    def options(self, *, stream: bool) -> Self:
        """Returns this handle."""
        return self

    @property
    def run(self) -> Self:
        """The method of the replica."""
        return self

    def remote(self, request: object, seconds: float | None) -> Self:
        """Returns the response."""
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> None:
        await asyncio.sleep(60)

    def cancel(self) -> None:
        """Counts the call."""
        self.cancelled += 1


@pytest.mark.parametrize("timeout", [None, 0.05])
def test_a_request_that_ray_keeps_waiting_ends_in_time_or_when_it_is_cancelled(timeout: float | None) -> None:
    async def ask() -> tuple[list[str | None], int]:
        replica: Any = SilentReplica()
        engine = RemoteEngine(None, replica, RaySettings())  # type: ignore[arg-type]
        running = engine.start(Request((1,), None), timeout=timeout)  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        assert engine.running == 1
        if timeout is None:
            running.cancel()
        reasons = [chunk.finish_reason async for chunk in running]
        assert engine.running == 0
        return reasons, replica.cancelled

    assert asyncio.run(ask()) == ([] if timeout is None else ["timeout"], 1)
