"""API keys, request ids, the access log and the metrics."""

from __future__ import annotations

import json
import logging
import re
import socket
from pathlib import Path

import pytest

from ssruntime import ConfigError
from ssruntime.server import ApiKeys, ServerSettings, read_api_keys
from tests.server.conftest import Served, serving

KEY, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"


def test_keys_are_needed_where_there_are_some(artifact: Path) -> None:
    with serving(artifact, api_keys=ApiKeys([KEY, OTHER])) as one:
        body = {"prompt": "abc", "max_tokens": 2}
        for header in (None, "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", KEY, f"Bearer {KEY[:-1]}", "Bearer ä"):
            headers = {} if header is None else {"authorization": header.encode("utf-8")}
            for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
                answer = one.client.post(path, json=body, headers=headers)
                assert answer.status_code == 401, (path, header)
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
            assert one.client.get("/v1/models", headers=headers).status_code == 401
        for key in (KEY, OTHER):
            assert one.client.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"}).status_code == 200
            assert one.client.post("/v1/completions", json=body, headers={"Authorization": f"bearer  {key}"}).status_code == 200
        for path in ("/health", "/ready", "/version", "/metrics"):
            assert one.client.get(path).status_code == 200


def test_a_file_of_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n{KEY}\n  {OTHER}  \n")
    path.chmod(0o600)
    keys = read_api_keys(path)
    assert len(keys) == 2
    assert keys.find(KEY) != keys.find(OTHER)
    assert KEY not in str(keys.find(KEY))
    assert keys.find("# ours") is keys.find("") is None
    assert not caplog.records
    path.chmod(0o644)
    read_api_keys(path)
    assert "can be read by other users" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"), [("", "no API key"), ("# none\n", "no API key"), ("short\n", "line 1"), (f"{KEY}\n{KEY} x\n", "line 2")]
)
def test_a_file_without_good_keys(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_api_keys(path)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_api_keys(path)
    (tmp_path / "bad").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_api_keys(tmp_path / "bad")


def test_settings_are_checked() -> None:
    for settings in ({"max_body": 0}, {"request_timeout": 0.0}, {"grace": -1.0}, {"model_names": ("",)}):
        with pytest.raises(ConfigError):
            ServerSettings(**settings)  # type: ignore[arg-type]


def test_each_request_has_an_id_and_a_line(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ssruntime.server")
    body = {"prompt": "secret", "max_tokens": 3, "user": "mallory\n\x1b[31m", "ignore_eos": True}
    answer = served.client.post("/v1/completions", json=body, headers={"x-request-id": "my-id.7"})
    assert answer.headers["x-request-id"] == "my-id.7"
    bad = served.client.post("/v1/completions", json=body | {"n": 0}, headers={"x-request-id": "a b\u00e4".encode("latin-1")})
    assert re.fullmatch("[0-9a-f]{32}", bad.headers["x-request-id"])
    served.client.get("/health")
    first, second = (json.loads(record.getMessage()) for record in caplog.records if record.name == "ssruntime.server.access_log")
    assert (
        first.items()
        >= {
            "request_id": "my-id.7",
            "method": "POST",
            "path": "/v1/completions",
            "status": 200,
            "user": "mallory [31m",
            "prompt_tokens": 6,
            "completion_tokens": 3,
            "finish": ["length"],
        }.items()
    )
    assert second["status"] == 400
    assert second["error"] == "n: Input should be greater than or equal to 1"
    assert "secret" not in caplog.text


def test_prompts_are_logged_where_asked(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ssruntime.server")
    with serving(artifact, log_prompts=True) as one:
        one.client.post("/v1/completions", json={"prompt": "secret\x9b", "max_tokens": 1})
    assert all(record.getMessage().isprintable() for record in caplog.records if record.name == "ssruntime.server.access_log")
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "ssruntime.server.access_log"]
    assert [line["prompt"] for line in lines if "prompt" in line] == [{"prompt": "secret\x9b"}]


def test_metrics_have_vllm_s_names(artifact: Path) -> None:
    with serving(artifact, model_names=("mine", "alias")) as one:
        body = {"model": "alias", "prompt": "abc", "max_tokens": 400, "ignore_eos": True, "temperature": 0}
        figures = one.client.post("/v1/completions", json=body).json()["metrics"]["speculative_decoding"]
        one.client.post("/v1/completions", json=body | {"n": 0})
        text = one.client.get("/metrics").text
    found = {name: float(value) for name, value in re.findall(r"^([^#\s]+) (\S+)$", text, re.MULTILINE)}
    label = '{model_name="mine"}'
    assert found[f"vllm:spec_decode_num_drafts_total{label}"] == figures["num_spec_steps"] > 0
    assert found[f"vllm:spec_decode_num_draft_tokens_total{label}"] == figures["num_draft_tokens"]
    assert found[f"vllm:spec_decode_num_accepted_tokens_total{label}"] == figures["num_accepted_draft_tokens"]
    at = [value for name, value in found.items() if name.startswith("vllm:spec_decode_num_accepted_tokens_per_pos_total")]
    assert sum(at) == figures["num_accepted_draft_tokens"]
    assert at == sorted(at, reverse=True)
    by_source = [value for name, value in found.items() if name.startswith("sstool:accepted_tokens_total")]
    assert sum(by_source) == figures["num_accepted_draft_tokens"]
    assert found[f"vllm:generation_tokens_total{label}"] == 400
    assert found[f"vllm:prompt_tokens_total{label}"] == 3
    assert found['vllm:request_success_total{finished_reason="length",model_name="mine"}'] == 1
    assert found['sstool:request_failure_total{model_name="mine",status="400"}'] == 1
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert found[f"vllm:{gauge}{label}"] == 0
    assert found[f"vllm:time_to_first_token_seconds_count{label}"] == found[f"vllm:e2e_request_latency_seconds_count{label}"] == 1
    assert found[f"vllm:inter_token_latency_seconds_count{label}"] == 399


def test_prefixes_are_shared_within_a_key_only(artifact: Path) -> None:
    body = {"prompt": "abcdefghij" * 10, "max_tokens": 2}

    def cached(one: Served, key: str) -> int:
        answer = one.client.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"}).json()
        found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    with serving(artifact, api_keys=ApiKeys([KEY, OTHER])) as one:
        assert [cached(one, key) for key in (KEY, KEY, OTHER, OTHER)] == [0, 96, 0, 96]
        text = one.client.get("/metrics").text
    assert 'vllm:prefix_cache_queries_total{model_name="scripted"} 400.0' in text
    assert 'vllm:prefix_cache_hits_total{model_name="scripted"} 192.0' in text
    with serving(artifact, api_keys=ApiKeys([KEY, OTHER]), share_prefixes=True) as one:
        assert [cached(one, key) for key in (KEY, OTHER)] == [0, 96]


def test_the_body_of_a_request_without_a_key_is_not_read(artifact: Path) -> None:
    with serving(artifact, api_keys=ApiKeys([KEY])) as one:
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            with socket.create_connection(("127.0.0.1", one.port), timeout=10) as bare:
                bare.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{{".encode())
                answer = bare.recv(65536)
                assert answer.startswith(b"HTTP/1.1 401 ")
                assert b"\r\nconnection: close\r\n" in answer


def test_a_failure_of_the_server_has_an_id_and_a_line(
    artifact: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "ssruntime.server")
    with serving(artifact) as one:
        monkeypatch.setattr(one.service, "check_model", None)
        answer = one.client.post("/v1/completions", json={"prompt": "abc"}, headers={"x-request-id": "mine"})
        text = one.client.get("/metrics").text
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert answer.headers["x-request-id"] == "mine"
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if record.name == "ssruntime.server.access_log"]
    assert line.items() >= {"request_id": "mine", "status": 500, "error": answer.json()["error"]["message"]}.items()
    assert 'sstool:request_failure_total{model_name="scripted",status="500"} 1.0' in text
    assert "request mine failed" in caplog.text
