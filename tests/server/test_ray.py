"""Two replicas on Ray Serve, of which one is killed: no request is lost, and no token comes twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from ssruntime import GenerationConfig, load
from tests.conftest import REPOSITORY
from tests.server.conftest import wait_for

pytest.importorskip("ray", reason="Ray is not installed: pip install 'sstool[ray]'")
pytestmark = pytest.mark.slow

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
