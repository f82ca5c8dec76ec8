"""Clients that misbehave are refused or cut off, and other requests do not notice."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssruntime import GenerationConfig
from ssruntime.server import connection as connections
from tests.server.conftest import Served, serving, wait_for

LONG = {"prompt": "abc", "max_tokens": 2900, "ignore_eos": True, "temperature": 0.8, "seed": 1}


@pytest.fixture(scope="module")
def strict(artifact: Path) -> Iterator[Served]:
    """A server that waits for nobody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "HEAD_TIMEOUT", 0.3)
        with serving(artifact, read_timeout=0.3, write_timeout=0.3, max_body=10_000, max_waiting=1) as one:
            yield one


@pytest.fixture(autouse=True)
def nothing_stays_behind(strict: Served) -> Iterator[None]:
    """After each test, no request runs, and one that comes gets its text."""
    expected = strict.engine.generate("abc", GenerationConfig(max_new_tokens=16))
    yield
    wait_for(lambda: strict.service.engine.running == strict.service.engine.waiting == 0)
    assert strict.client.post("/v1/completions", json={"prompt": "abc"}).json()["choices"][0]["text"] == expected.text
    wait_for(lambda: strict.engine.kv_usage == 0.0)


@contextlib.contextmanager
def connection(served: Served) -> Iterator[socket.socket]:
    """A bare connection to a server."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as one:
        yield one


def request(body: object, *, length: int | None = None) -> bytes:
    """Returns a request, with the length of its body as given or as it is."""
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length or len(content)}\r\n\r\n"
    return head.encode() + content


def everything(one: socket.socket) -> bytes:
    """Returns what a server sends until it closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := one.recv(65536):
            found += data
    return found


def test_a_large_body_is_refused(strict: Served) -> None:
    with connection(strict) as one:
        one.sendall(request({"prompt": "a"}, length=100_000_000))
        answer = everything(one)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"body_too_large"' in answer


def test_a_large_body_in_chunks_is_refused(strict: Served) -> None:
    with connection(strict) as one:
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                one.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        assert everything(one).startswith(b"HTTP/1.1 413 ")


def test_a_slow_body_is_given_up(strict: Served) -> None:
    with connection(strict) as one:
        one.sendall(request({"prompt": "a"}, length=1000))
        assert everything(one).startswith(b"HTTP/1.1 408 ")


def test_a_slow_head_is_cut(strict: Served) -> None:
    with connection(strict) as one:
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
        assert everything(one) == b""
    with connection(strict) as one:
        assert everything(one) == b""
    with connection(strict) as one:  # the second request of a connection
        one.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: one.recv(65536).startswith(b"HTTP/1.1 200"))
        one.sendall(b"GET /hea")
        assert everything(one) == b""


def test_an_endless_head_is_refused(strict: Served) -> None:
    with connection(strict) as one:
        with contextlib.suppress(ConnectionError):
            one.sendall(b"GET / HTTP/1.1\r\n")
            for number in range(2000):
                one.sendall(f"X-{number}: {'y' * 100}\r\n".encode())
        answer = everything(one)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01", b"HELLO\r\n\r\n", b"\x00" * 100])
def test_what_is_not_http_is_refused(strict: Served, sent: bytes) -> None:
    with connection(strict) as one:
        one.sendall(sent)
        answer = everything(one)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("stream", [False, True])
def test_a_closed_connection_ends_its_request(strict: Served, stream: bool) -> None:
    with connection(strict) as one:
        one.sendall(request(LONG | {"stream": stream, "n": 2}))
        wait_for(lambda: strict.service.engine.running == 2)
    wait_for(lambda: strict.service.engine.running == 0)


@pytest.mark.parametrize("ahead", [b"G", b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" * 100])
def test_bytes_ahead_do_not_hide_a_closed_connection(strict: Served, ahead: bytes) -> None:
    def ended() -> list[str]:
        return [line for line in strict.service.metrics.render().decode().splitlines() if line.startswith("vllm:request_success_total")]

    before = ended()
    with connection(strict) as one:
        one.sendall(request(LONG | {"n": 2, "logprobs": 20}))
        wait_for(lambda: strict.service.engine.running == 2)
        one.sendall(ahead)
        time.sleep(0.1)
    wait_for(lambda: strict.service.engine.running == 0)
    assert ended() == before


def test_a_half_closed_connection_ends_its_request(strict: Served) -> None:
    with connection(strict) as one:
        one.sendall(request(LONG | {"stream": True}))
        one.shutdown(socket.SHUT_WR)
        everything(one)


def test_a_slow_reader_is_cut_off(strict: Served) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.connect(("127.0.0.1", strict.port))
        one.settimeout(60)
        one.sendall(request(LONG | {"stream": True, "logprobs": 20, "n": 2}))
        wait_for(lambda: strict.service.engine.running == 2)
        wait_for(lambda: strict.service.engine.running == 0)
        assert b"[DONE]" not in everything(one)


def test_a_full_queue_is_429_at_once(strict: Served) -> None:
    with contextlib.ExitStack() as stack:
        for count in range(1, 4):
            one = stack.enter_context(connection(strict))
            one.sendall(request(LONG | {"stream": True}))
            wait_for(lambda count=count: strict.service.engine.running + strict.service.engine.waiting == count)  # type: ignore[misc]
        for stream in (False, True):
            answer = strict.client.post("/v1/completions", json=LONG | {"stream": stream})
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"
        both = strict.client.post("/v1/completions", json=LONG | {"n": 3})  # all of its choices, or none
        assert both.status_code == 429


def test_pipelined_requests_get_their_answers_in_order(strict: Served) -> None:
    with connection(strict) as one:
        one.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = everything(one)
    assert answers.index(b'"version"') < answers.index(b'"ready"')


@pytest.mark.parametrize("body", [{"prompt": [None] * 1000}, {"prompt": [[None]] * 1000}, {"prompt": "a", "str": 1}])
def test_wrong_lists_cost_one_error(strict: Served, body: dict[str, object]) -> None:
    answer = strict.client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in ("prompt", "str")
