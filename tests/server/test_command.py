"""`sstool serve`: what it prints, how it ends, and what a kill leaves behind."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from ssruntime import GenerationConfig, load
from ssruntime.async_engine import DEFAULT_MAX_WAITING
from ssruntime.engine import DEFAULT_MAX_SEQUENCES
from ssruntime.server import ServerSettings
from sstool.cli import serve
from sstool.cli.main import run
from tests.server.conftest import wait_for

BODY = {"prompt": "abc", "max_tokens": 60, "temperature": 0.8, "seed": 2, "ignore_eos": True}
KEY = "sk-0123456789abcdef"


@contextlib.contextmanager
def running(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """Runs the command; gives its process, and a client for it."""
    command = [
        sys.executable,
        "-c",
        "from sstool.cli.main import main; main()",
        "serve",
        str(folder),
        "--port",
        "0",
        "--threads",
        "1",
        *options,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if line.startswith("serving "):
                    break
            with httpx2.Client(base_url=line.split()[-1], timeout=60, trust_env=False) as client:
                yield process, client
        finally:
            process.kill()
            process.stderr.read()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_after_its_requests(artifact: Path, name: str) -> None:
    with running(artifact) as (process, client):
        with client.stream("POST", "/v1/completions", json=BODY | {"max_tokens": 2900, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(getattr(signal, name))
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(60) == 0


def test_a_second_interrupt_ends_it_at_once(artifact: Path) -> None:
    long = BODY | {"max_tokens": 2900, "stream": True, "logprobs": 20, "n": 2}
    with running(artifact) as (process, client):
        with client.stream("POST", "/v1/completions", json=long) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            wait_for(lambda: _refuses(client))
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(httpx2.TransportError):
                assert "data: [DONE]" not in list(lines)
        assert process.wait(20) == 0


def _refuses(client: httpx2.Client) -> bool:
    try:
        return httpx2.get(client.base_url.join("/ready"), trust_env=False).status_code != httpx2.codes.OK
    except httpx2.TransportError:
        return True


def test_a_kill_leaves_artifact_and_cache_that_load(artifact: Path) -> None:
    with (
        running(artifact) as (process, client),
        contextlib.suppress(httpx2.TransportError),
        client.stream("POST", "/v1/completions", json=BODY | {"max_tokens": 2900, "stream": True}) as answer,
    ):
        next(answer.iter_lines())
        process.kill()
    with load(artifact, threads=1, verify=True) as engine:
        expected = engine.generate("abc", GenerationConfig(max_new_tokens=60, temperature=0.8, seed=2, ignore_eos=True)).text
    with running(artifact) as (_, client):
        assert client.post("/v1/completions", json=BODY).json()["choices"][0]["text"] == expected


def test_options_reach_the_server(artifact: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    options = ["--api-key-file", str(keys), "--served-model-name", "mine", "--max-context", "100", "--queue", "0", "--max-sequences", "1"]
    with running(artifact, *options, "--log-prompts") as (process, client):
        assert client.get("/v1/models").status_code == 401
        client.headers["Authorization"] = f"Bearer {KEY}"
        assert client.get("/v1/models").json()["data"][0].items() >= {"id": "mine", "max_model_len": 100}.items()
        assert client.post("/v1/completions", json=BODY | {"n": 2}).status_code == 400
        assert client.post("/v1/completions", json=BODY).json()["usage"]["completion_tokens"] == 60
        process.terminate()
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr if line.startswith("{")]
    assert lines[-1]["prompt"] == {"prompt": "abc"}
    assert KEY not in json.dumps(lines)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--port", "99999"], 1, "port is out of range"),
        (["--host", "no.such.host.invalid"], 1, "cannot listen"),
        (["--api-key-file", "absent"], 1, "absent cannot be read"),
        (["--max-sequences", "0"], 1, "max_sequences"),
        (["--queue", "-1"], 1, "max_waiting"),
        (["--grace", "-1"], 1, "grace"),
        (["--max-body", "0"], 1, "max_body"),
        (["--served-model-name", ""], 1, "empty name"),
        (["--port", "x"], 2, "--port"),
    ],
)
def test_bad_options_are_one_line(artifact: Path, options: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(artifact), "--threads", "1", *options]) == code
    *warnings, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert all("other machines can reach" in one for one in warnings)


def test_a_port_in_use_is_one_line(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["serve", str(artifact), "--threads", "1", "--port", str(taken.getsockname()[1])]) == 1
    assert "cannot listen at 127.0.0.1" in capsys.readouterr().err


def test_defaults_are_the_runtime_s() -> None:
    settings = ServerSettings()
    assert (serve.MAX_SEQUENCES, serve.QUEUE) == (DEFAULT_MAX_SEQUENCES, DEFAULT_MAX_WAITING)
    assert (settings.request_timeout, settings.grace, settings.max_body) == (serve.REQUEST_TIMEOUT, serve.GRACE, serve.MAX_BODY)
