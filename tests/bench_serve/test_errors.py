"""Whatever is wrong with URL, server, key, model or prompts is one line with a hint, before any figure."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sstool.cli.main import EXIT_FAILED, EXIT_USAGE
from tests.bench_serve.scripted_server import (
    CHAT,
    COMPLETIONS,
    GOOD,
    MODELS,
    Answer,
    Received,
    ScriptedServer,
    Wire,
    lists_models,
    not_found,
    refuses,
    running,
    says,
    streams,
)
from tests.cli.conftest import Command, Outcome

Prompts = Callable[..., Path]
HTML = "<!doctype html><title>Welcome</title>"


def fails(outcome: Outcome, *expected: str, code: int = EXIT_FAILED) -> None:
    assert outcome.code == code
    assert outcome.out == ""
    [line] = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert "; hint: " in line
    assert line.isprintable()
    assert not [text for text in expected if text not in line], line


async def redirect(_request: Received, wire: Wire) -> None:
    await wire.answer(308, b"", headers=("Location: https://elsewhere.example/v1/models",))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:8000", "is not an http or https URL"),
        ("ftp://host", "is not an http or https URL"),
        ("http://", "is not an http or https URL"),
        ("http://host:port", "is not an http or https URL"),
        ("http://host:99999", "is not an http or https URL"),
        ("http://ho st", "is not an http or https URL"),
        ("http://[::1", "is not an http or https URL"),
        ("http://me:secret@host", "must not hold a user name or a password"),
        ("http://host/?a=b", "has a query or a fragment"),
    ],
)
def test_wrong_urls(sstool: Command, three: Path, url: str, expected: str) -> None:
    outcome = sstool("bench-serve", url, "--prompts", three)
    fails(outcome, expected)
    assert "secret" not in outcome.err


def test_no_server(sstool: Command, three: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fails(sstool("bench-serve", f"http://127.0.0.1:{port}", "--prompts", three), "cannot connect to", "that the server has started")


def test_no_such_host(sstool: Command, three: Path) -> None:
    fails(sstool("bench-serve", "http://no-such-host.invalid", "--prompts", three), "cannot connect to http://no-such-host.invalid")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (says(200, HTML, "text/html; charset=utf-8"), "answers with HTML (status 200), so this is no server with OpenAI's API"),
        (says(404, HTML, "text/html"), "answers with HTML (status 404)"),
        (says(200, "hello\x1b[0m" + "x" * 9000, "text/plain"), "it answers with hello [0mxxx"),
        (says(200, "", "text/plain"), "it answers with nothing"),
        (refuses(200, {"data": [{"name": "a"}]}), "does not list models"),
        (refuses(200, [1]), "does not list models"),
        (not_found, "/v1/models lists no models"),
        (lists_models(), "/v1/models lists no models"),
        (refuses(401, {"error": {"message": "no key"}}), "status 401: no key; hint: pass the name of a variable: --api-key-env VAR"),
        (refuses(503, {"error": {"message": "Loading model"}}), "status 503: Loading model; hint: check the server's log; it may still be"),
        (redirect, "redirects to https://elsewhere.example/v1/models"),
    ],
)
def test_what_is_no_list_of_models(sstool: Command, server: ScriptedServer, three: Path, answer: Answer, expected: str) -> None:
    server.answers[MODELS] = answer
    fails(sstool("bench-serve", server.url, "--prompts", three), expected)
    assert not server.bodies(COMPLETIONS)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (says(200, HTML, "text/html"), "answers with HTML"),
        (says(404, HTML, "text/html"), "answers with HTML"),
        (refuses(401, {"error": "no key"}), "status 401: no key"),
        (redirect, "redirects to"),
    ],
)
def test_a_named_model_does_not_excuse_a_wrong_server(
    sstool: Command, server: ScriptedServer, three: Path, answer: Answer, expected: str
) -> None:
    server.answers[MODELS] = answer
    fails(sstool("bench-serve", server.url, "--prompts", three, "--model", "m"), expected)
    assert not server.bodies(COMPLETIONS)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refuses(401, {"error": {"message": "Invalid API key"}}), "status 401: Invalid API key"),
        (refuses(403, {"error": "forbidden"}), "status 403: forbidden"),
        (not_found, "status 404: Not Found; hint: check the URL"),
        (refuses(404, {"error": {"message": "The model `x` does not exist."}}), "does not know the model: The model `x` does not exist."),
        (refuses(400, {"error": {"message": "nothing of that name", "code": "model_not_found"}}), "does not know the model: nothing of"),
        (says(200, HTML, "text/html"), "answers with HTML (status 200), so this is no server with OpenAI's API"),
        (says(502, HTML, "text/html"), "answers with HTML (status 502)"),
        (refuses(200, {"choices": [{"text": "all at once"}]}), "answers with application/json, not with a stream"),
        (redirect, "redirects to"),
    ],
)
def test_what_every_request_would_meet_ends_the_load(
    sstool: Command, server: ScriptedServer, three: Path, answer: Answer, expected: str
) -> None:
    server.answers[COMPLETIONS] = answer
    for options in ((), ("--warmup", "1"), ("--rate", "1000")):
        fails(sstool("bench-serve", server.url, "--prompts", three, "--requests", "50", *options), expected)
    assert len(server.bodies(COMPLETIONS)) < 60


def test_a_server_without_completions_may_have_chats(sstool: Command, server: ScriptedServer, three: Path) -> None:
    server.answers = {MODELS: lists_models("m"), CHAT: streams(*GOOD)}
    fails(sstool("bench-serve", server.url, "--prompts", three), "/v1/completions answers with status 404", "--endpoint")


def test_a_key_that_is_not_accepted(sstool: Command, server: ScriptedServer, three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server.answers[MODELS] = refuses(401, {"error": {"message": "Incorrect API key provided: sk-secret"}})
    outcome = sstool("bench-serve", server.url, "--prompts", three, "--api-key-env", "MY_KEY")
    fails(outcome, "status 401: Incorrect API key provided: ***; hint: the key in that variable is not accepted")


@pytest.mark.parametrize("value", [None, "", "two\nlines", "schlüssel"])
def test_a_variable_without_a_key(
    sstool: Command, server: ScriptedServer, three: Path, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("MY_KEY", raising=False)
    else:
        monkeypatch.setenv("MY_KEY", value)
    expected = "holds characters that a header cannot" if value else "is not set, or empty"
    fails(sstool("bench-serve", server.url, "--prompts", three, "--api-key-env", "MY_KEY"), expected)
    assert not server.received


def test_a_certificate_that_is_not_trusted(sstool: Command, three: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with running(ScriptedServer(answers={MODELS: lists_models("m")}), context) as server:
        fails(sstool("bench-serve", server.url, "--prompts", three), "is not trusted: ", "SSL_CERT_FILE")
        fails(sstool("bench-serve", server.url.replace("https", "http"), "--prompts", three), "may speak https instead of http")


def test_https_to_a_server_of_http(sstool: Command, server: ScriptedServer, three: Path) -> None:
    fails(sstool("bench-serve", server.url.replace("http", "https"), "--prompts", three), "no TLS connection", "http instead of https")


@pytest.mark.parametrize(
    ("lines", "options", "expected"),
    [
        ([], (), "holds no prompts"),
        ([{"text": "a"}], (), "line 1: key 'prompt' is missing"),
        ([{"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}], (), "some prompts are chats and some are texts"),
        ([{"messages": [{"role": "user", "content": "a"}]}], ("--endpoint", "completions"), "prompt 0 is a chat"),
        ([{"prompt": [1, 2]}], ("--endpoint", "chat"), "prompt 0 is token ids"),
    ],
)
def test_prompts_that_cannot_be_sent(
    sstool: Command, server: ScriptedServer, prompts: Prompts, lines: list[object], options: tuple[str, ...], expected: str
) -> None:
    fails(sstool("bench-serve", server.url, "--prompts", prompts(*lines), *options), expected)
    assert not server.received


def test_files_that_cannot_be_used(sstool: Command, server: ScriptedServer, three: Path, tmp_path: Path) -> None:
    fails(sstool("bench-serve", server.url, "--prompts", tmp_path / "absent"), "cannot read prompts")
    fails(sstool("bench-serve", server.url, "--prompts", three, "--save", tmp_path / "absent" / "rows"), "absent")
    assert not server.received


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--max-tokens", "0"), "max_tokens is out of range"),
        (("--temperature", "-1"), "temperature is out of range"),
        (("--top-p", "0"), "top_p is out of range"),
        (("--seed", "-1"), "seed is out of range"),
        (("--rate", "0"), "rate is out of range"),
        (("--rate", "nan"), "rate is out of range"),
        (("--concurrency", "1,0"), "concurrency is out of range"),
        (("--requests", "0"), "requests is out of range"),
        (("--warmup", "-1"), "warmup is out of range"),
        (("--timeout", "0"), "timeout_s is out of range"),
    ],
)
def test_settings_out_of_range(sstool: Command, server: ScriptedServer, three: Path, options: tuple[str, ...], expected: str) -> None:
    fails(sstool("bench-serve", server.url, "--prompts", three, *options), expected)
    assert not server.received


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "Missing argument 'URL'"),
        (("http://host",), "Missing option '--prompts'"),
        (("http://host", "--prompts", "f", "--concurrency", "1,x"), "'1,x' is not a list of whole numbers such as 1,4,8"),
        (("http://host", "--prompts", "f", "--concurrency", ""), "is not a list of whole numbers"),
        (("http://host", "--prompts", "f", "--endpoint", "embeddings"), "'completions', 'chat'"),
        (("http://host", "--prompts", "f", "--api-key", "k"), "No such option"),
    ],
)
def test_wrong_usage(sstool: Command, args: tuple[str, ...], expected: str) -> None:
    fails(sstool("bench-serve", *args), expected, code=EXIT_USAGE)
