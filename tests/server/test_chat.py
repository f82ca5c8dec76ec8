"""`/v1/chat/completions` renders the model's own template, in OpenAI's form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssruntime import Chat, GenerationConfig
from tests.runtime.scripted import every_byte, random_script, write_artifact
from tests.server.conftest import Served, events, serving

MESSAGES = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
SAMPLED = {"temperature": 0.8, "seed": 5, "max_completion_tokens": 40, "ignore_eos": True}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}


def post(served: Served, **body: Any) -> dict[str, Any]:
    answer = served.client.post("/v1/chat/completions", json={"messages": MESSAGES, **SAMPLED} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def expected(served: Served, messages: list[dict[str, Any]] = MESSAGES, **chat: Any) -> str:
    config = GenerationConfig(temperature=0.8, seed=5, max_new_tokens=40, ignore_eos=True)
    return served.engine.generate(Chat(messages=messages, **chat), config).text


def test_the_answer_is_the_engine_s(served: Served) -> None:
    found = post(served)
    assert found["object"] == "chat.completion"
    message = {"role": "assistant", "content": expected(served), "refusal": None}
    assert found["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]
    assert found["usage"]["prompt_tokens"] == len(served.engine.encode(MESSAGES))


def test_a_stream_begins_with_the_role(served: Served) -> None:
    body = {"messages": MESSAGES, **SAMPLED, "n": 2, "stream_options": {"include_usage": True}}
    found = events(served, "/v1/chat/completions", **body)
    assert [one["object"] for one in found] == ["chat.completion.chunk"] * len(found)
    *pieces, last = found
    for index in range(2):
        first, *middle, end = [choice for one in pieces for choice in one["choices"] if choice["index"] == index]
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert (end["delta"], end["finish_reason"]) == ({}, "length")
        assert all(choice["delta"].keys() == {"content"} and choice["finish_reason"] is None for choice in middle)
        if index == 0:
            assert "".join(choice["delta"]["content"] for choice in middle) == expected(served)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 80


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(served: Served, stream: bool) -> None:
    body = {"messages": MESSAGES, **SAMPLED, "logprobs": True, "top_logprobs": 2}
    if stream:
        chunks = [choice for one in events(served, "/v1/chat/completions", **body) for choice in one["choices"]]
        found = [one for choice in chunks if choice["logprobs"] for one in choice["logprobs"]["content"]]
    else:
        found = post(served, **body)["choices"][0]["logprobs"]["content"]
    config = GenerationConfig(temperature=0.8, seed=5, max_new_tokens=40, ignore_eos=True, logprobs=2)
    done = served.engine.generate(MESSAGES, config)
    assert done.logprobs is not None
    assert [one["logprob"] for one in found] == [one.logprob for one in done.logprobs]
    assert [bytes(one["bytes"]) for one in found] == [served.engine.token_bytes(token) for token in done.token_ids]
    # Beside each token are the most probable ones only, which the token need not belong to.
    assert [[other["logprob"] for other in one["top_logprobs"]] for one in found] == [
        [value for _, value in one.top] for one in done.logprobs
    ]
    assert any(one["token"] not in [other["token"] for other in one["top_logprobs"]] for one in found)
    assert [one["logprob"] for one in post(served, logprobs=True)["choices"][0]["logprobs"]["content"]] == [
        one.logprob for one in done.logprobs
    ]


def test_what_the_template_gets(served: Served) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert post(served, messages=[MESSAGES[0], {"role": "user", "content": parts}])["choices"][0]["message"]["content"] == expected(served)
    developer = [{"role": "developer", "content": "be"}, MESSAGES[1]]
    assert post(served, messages=developer)["choices"][0]["message"]["content"] == expected(served)
    assert post(served, tools=[TOOL])["choices"][0]["message"]["content"] == expected(served, tools=[TOOL])
    assert expected(served, tools=[TOOL]) != expected(served)
    assert post(served, tools=[TOOL], tool_choice="none")["choices"][0]["message"]["content"] == expected(served)
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": json.dumps({"at": "x"})}}
    turns = [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "ok", "tool_call_id": "1"}]
    assert post(served, messages=turns)["usage"]["prompt_tokens"] > post(served)["usage"]["prompt_tokens"]


def test_without_a_limit_the_context_is_one(served: Served) -> None:
    found = post(served, max_completion_tokens=None)
    assert found["usage"]["total_tokens"] == 3000
    assert found["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user"}]}, None, "lacks a role or content"),
        ({"messages": [{"role": "bad", "content": "x"}]}, None, "no such role"),
        ({"messages": [{"role": "user", "content": "x", "audio": {}}]}, "messages.0.audio", "unknown parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None, ""),
        ({"top_logprobs": 2}, None, "logprobs: true"),
        ({"max_tokens": 3}, None, "differ"),
        ({"tool_choice": "required"}, "tool_choice", '"auto"'),
        ({"response_format": {"type": "json_object"}}, "response_format.type", '"text"'),
        ({"chat_template_kwargs": {"x": json.loads("[" * 40 + "]" * 40)}}, "chat_template_kwargs", "nested more than 32 deep"),
        ({"functions": []}, "functions", "unknown parameter"),
        ({"chat_template_kwargs": {"messages": 1}}, None, "messages"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]},
            "messages.0.tool_calls.0.function.arguments",
            "JSON object",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(served: Served, body: dict[str, Any], param: str | None, message: str) -> None:
    answer = served.client.post("/v1/chat/completions", json={"messages": MESSAGES, **SAMPLED} | body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"]
    assert param in (None, error["param"])


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_encoded(tmp_path: Path) -> None:
    template = "{{ messages[0].content }}{{ tools | tojson(indent=4) if tools }}"
    script = random_script(1, vocab=258)
    folder = write_artifact(tmp_path / "bytes", script, tokenizer=every_byte(), max_context=60, chat_template=template)
    tool = {"type": "function", "function": {"name": "f", "values": json.loads("[" * 20 + "1" + ",1" * 50_000 + "]" * 20)}}
    with serving(folder) as one:
        for path, body in (
            ("/v1/completions", {"prompt": "a" * 500_000}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 500_000}]}),
            ("/v1/chat/completions", {"messages": MESSAGES, "tools": [tool]}),
        ):
            answer = one.client.post(path, json=body | {"max_tokens": 1})
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "context_length_exceeded"
            assert "characters" in answer.json()["error"]["message"]
        assert one.client.post("/tokenize", json={"prompt": "a" * 500_000}).json()["count"] == 500_000
        tokens = one.client.post("/tokenize", json={"messages": MESSAGES, "tools": [tool]})
        assert tokens.json()["error"]["code"] == "context_length_exceeded"


def test_tokens(served: Served) -> None:
    client = served.client
    found = client.post("/tokenize", json={"prompt": "abc", "return_token_strs": True}).json()
    assert found == {"count": 3, "max_model_len": 3000, "tokens": served.engine.encode("abc"), "token_strs": ["a", "b", "c"]}
    assert client.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "abc"}
    assert client.post("/tokenize", json={"messages": MESSAGES}).json()["tokens"] == served.engine.encode(MESSAGES)
    assert client.post("/tokenize", json={}).status_code == 400
    assert client.post("/tokenize", json={"prompt": ""}).status_code == 400
    assert client.post("/detokenize", json={"tokens": [10**9]}).status_code == 400
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_models_and_state(served: Served) -> None:
    client = served.client
    (model,) = client.get("/v1/models").json()["data"]
    assert model == client.get("/v1/models/scripted").json()
    assert (model["id"], model["max_model_len"]) == ("scripted", 3000)
    assert client.get("/v1/models/other").status_code == 404
    assert client.get("/health").status_code == 200
    assert client.get("/ready").json() == {"status": "ready"}
    assert client.get("/version").json()["version"]
