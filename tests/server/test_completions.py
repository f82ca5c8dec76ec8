"""`/v1/completions` gives the engine's own text, in OpenAI's form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssruntime import GenerationConfig
from tests.runtime.scripted import Script, every_byte, phrase_table, write_artifact
from tests.server.conftest import Served, events, serving

SAMPLED = {"temperature": 0.8, "seed": 5, "max_tokens": 40, "ignore_eos": True}
CONFIG = GenerationConfig(temperature=0.8, seed=5, max_new_tokens=40, ignore_eos=True)


def post(served: Served, **body: Any) -> dict[str, Any]:
    answer = served.client.post("/v1/completions", json={"prompt": "abc", **SAMPLED} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_text_is_the_engine_s(served: Served) -> None:
    expected = served.engine.generate("abc", CONFIG)
    found = post(served)
    assert found["object"] == "text_completion"
    assert found["model"] == "scripted"
    assert found["choices"] == [{"index": 0, "text": expected.text, "logprobs": None, "finish_reason": "length"}]
    assert found["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 40,
        "total_tokens": 43,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_prompts_may_be_texts_or_tokens_one_or_many(served: Served) -> None:
    one = post(served)["choices"][0]["text"]
    ids = served.engine.encode("abc")
    for prompt in (["abc"], ids, [ids]):
        assert [choice["text"] for choice in post(served, prompt=prompt)["choices"]] == [one]
    many = post(served, prompt=["abc", "ba"], n=2)
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2, 3]
    assert many["choices"][0]["text"] == one
    assert many["choices"][1]["text"] == served.engine.generate("abc", CONFIG_OF(6)).text
    assert many["choices"][3]["text"] == served.engine.generate("ba", CONFIG_OF(6)).text
    assert many["usage"]["completion_tokens"] == 160


def CONFIG_OF(seed: int) -> GenerationConfig:  # noqa: N802 - reads like CONFIG
    return GenerationConfig(temperature=0.8, seed=seed, max_new_tokens=40, ignore_eos=True)


def test_a_stream_has_the_same_text_then_the_reason_then_the_usage(served: Served) -> None:
    found = events(served, **SAMPLED, prompt="abc", n=2, stream_options={"include_usage": True})
    *pieces, last = found
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 80
    for index in range(2):
        own = [choice for one in pieces for choice in one["choices"] if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == served.engine.generate("abc", CONFIG_OF(5 + index)).text
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["length"]
        assert own[-1]["text"] == ""
    assert all("usage" not in one for one in pieces)
    assert len({one["id"] for one in found}) == 1


def test_each_chunk_has_the_usage_where_asked(served: Served) -> None:
    found = events(served, **SAMPLED, prompt="abc", stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [one["usage"]["completion_tokens"] for one in found]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 40


def test_a_stream_without_usage_has_none(served: Served) -> None:
    assert all(one["choices"] for one in events(served, **SAMPLED, prompt="abc"))


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(served: Served, stream: bool) -> None:
    expected = served.engine.generate("abc", GenerationConfig(temperature=0.8, seed=5, max_new_tokens=40, ignore_eos=True, logprobs=2))
    assert expected.logprobs is not None
    if stream:
        parts = [
            choice["logprobs"]
            for one in events(served, **SAMPLED, prompt="abc", logprobs=2)
            for choice in one["choices"]
            if choice["logprobs"]
        ]
        found = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    else:
        found = post(served, logprobs=2)["choices"][0]["logprobs"]
    assert found["token_logprobs"] == [one.logprob for one in expected.logprobs]
    assert found["tokens"] == [served.engine.token_bytes(token).decode() for token in expected.token_ids]
    text_of = {token: served.engine.token_bytes(token).decode() for token in range(served.engine.backend.vocab_size)}
    for top, token, one in zip(found["top_logprobs"], expected.token_ids, expected.logprobs, strict=True):
        assert top == {text_of[other]: value for other, value in (*one.top, (token, one.logprob))}
    assert {len(top) for top in found["top_logprobs"]} == {2, 3}  # the token is not always among the two best
    shown = [(at, token) for at, token in zip(found["text_offset"], found["tokens"], strict=True) if token != "</s>"]
    assert len(shown) < 40
    assert [expected.text[at : at + 1] for at, _ in shown] == [token for _, token in shown]


def test_without_other_tokens_the_token_is_the_only_one(served: Served) -> None:
    found = post(served, logprobs=0)["choices"][0]["logprobs"]
    assert found["top_logprobs"] == [{token: value} for token, value in zip(found["tokens"], found["token_logprobs"], strict=True)]


def test_drafts_are_reported(served: Served) -> None:
    body = {"max_tokens": 400, "temperature": 0}
    figures = post(served, **body)["metrics"]["speculative_decoding"]
    assert figures["num_spec_steps"] == sum(figures["acceptance_histogram"]) > 0
    assert figures["num_accepted_draft_tokens"] == sum(n * count for n, count in enumerate(figures["acceptance_histogram"]))
    assert figures["draft_acceptance_rate"] == figures["num_accepted_draft_tokens"] / figures["num_draft_tokens"]
    last = events(served, **SAMPLED | body, prompt="abc", stream_options={"include_usage": True})[-1]
    assert last["metrics"]["speculative_decoding"]["num_spec_steps"] > 0


def test_a_text_ends_as_asked(served: Served) -> None:
    text = post(served)["choices"][0]["text"]
    stop = text[10:12]
    found = post(served, stop=stop)["choices"][0]
    assert (found["text"], found["finish_reason"]) == (text[: text.index(stop)], "stop")
    token = served.engine.encode(text[7])[0]
    found = post(served, stop_token_ids=[token])["choices"][0]
    assert (found["text"], found["finish_reason"]) == (text[: text.index(text[7]) + 1], "stop")
    assert len(post(served, max_tokens=None)["choices"][0]["text"]) == 16
    long = post(served, max_tokens=10**6, prompt=[1] * 2900)
    assert long["choices"][0]["finish_reason"] == "length"
    assert long["usage"]["total_tokens"] == 3000


def test_neutral_values_of_what_is_not_supported_are_accepted(served: Served) -> None:
    neutral = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "echo": False, "suffix": None, "best_of": 1, "user": "me"}
    assert post(served, **neutral)["choices"] == post(served)["choices"]
    assert post(served, top_k=-1, n=None, stop=None, stream=None)["choices"] == post(served)["choices"]


@pytest.mark.parametrize(
    ("body", "status", "param", "code", "message"),
    [
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "invalid_value", "only 0"),
        ({"echo": True}, 400, "echo", "invalid_value", "only false"),
        ({"best_of": 3}, 400, None, "invalid_value", "best_of must equal n"),
        ({"guided_regex": "a+"}, 400, "guided_regex", "unknown_parameter", "guided_regex"),
        ({"stream_options": {"include_usage": True}}, 400, None, "invalid_value", "stream: true"),
        ({"stream": True, "stream_options": {"other": 1}}, 400, "stream_options.other", "unknown_parameter", "other"),
        ({"prompt": []}, 400, "prompt", "invalid_value", "empty"),
        ({"prompt": ""}, 400, None, None, "empty"),
        ({"prompt": [99999]}, 400, None, None, "token id"),
        ({"prompt": "a" * 4000}, 400, None, "context_length_exceeded", "4000 tokens"),
        ({"prompt": [1] * 4000}, 400, None, "context_length_exceeded", "4000 tokens"),
        ({"max_tokens": 0}, 400, "max_tokens", "invalid_value", "greater than or equal to 1"),
        ({"max_tokens": "9"}, 400, "max_tokens", "invalid_value", "integer"),
        ({"temperature": -1}, 400, "temperature", "invalid_value", "greater"),
        ({"logprobs": 21}, 400, "logprobs", "invalid_value", "less than or equal to 20"),
        ({"n": 129}, 400, "n", "invalid_value", "128"),
        ({"n": 100}, 400, "n", "invalid_value", "at most 66"),
        ({"min_tokens": 50}, 400, None, None, "min_tokens 50 is more than max_tokens 40 (raise max_tokens, or lower min_tokens)"),
        ({"stop": [""]}, 400, "stop.0", "invalid_value", "at least 1 character"),
        ({"stop": ["x"] * 17}, 400, "stop", "invalid_value", "at most 16 items"),
        ({"stop": "x" * 1001}, 400, "stop", "invalid_value", "at most 1000 characters"),
        ({"stop": 5}, 400, "stop", "invalid_value", "stop: the value has the wrong type"),
        ({"prompt": [1, "a"]}, 400, "prompt", "invalid_value", "prompt: the value has the wrong type"),
        ({"stop_token_ids": [1] * 257}, 400, "stop_token_ids", "invalid_value", "at most 256 items"),
        ({"stop_token_ids": [99999]}, 400, None, None, "stop_token_ids"),
        ({"model": "gpt-9"}, 404, "model", "model_not_found", "gpt-9"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(
    served: Served, body: dict[str, Any], status: int, param: str | None, code: str | None, message: str
) -> None:
    answer = served.client.post("/v1/completions", json={"prompt": "abc", **SAMPLED} | body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert message in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert "\n" not in error["message"]
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Field required"),
        (b"{", "not JSON"),
        (b"[1]", "valid dictionary"),
        (b'{"prompt": "\xff"}', "body"),
        (b'{"prompt": "\\ud800"}', "prompt"),
        (b"[" * 10_000 + b"]" * 10_000, "body"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "body"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature"),
        (b'{"prompt": "a", "x' + b"y" * 5000 + b'": 1}', "unknown parameter"),
    ],
)
def test_bodies_that_are_no_request(served: Served, content: bytes, message: str) -> None:
    answer = served.client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert len(answer.text) < 1000


def test_unknown_paths_and_methods(served: Served) -> None:
    assert served.client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    answer = served.client.get("/v1/completions")
    assert answer.status_code == 405
    assert "method" in answer.json()["error"]["message"]


def test_offsets_count_characters_not_tokens(tmp_path: Path) -> None:
    text = "añ😀b 日本."
    tokens = [byte + 2 for byte in text.encode()]
    table = phrase_table(tokens, vocab=258)
    folder = write_artifact(tmp_path / "bytes", Script(verify=table), tokenizer=every_byte(), max_context=60)
    body = {"prompt": [1], "max_tokens": len(tokens), "logprobs": 0, "ignore_eos": True}
    with serving(folder) as one:
        (choice,) = one.client.post("/v1/completions", json=body).json()["choices"]
    assert choice["text"] == text
    whole = [len(text.encode()[:index].decode(errors="ignore")) for index in range(len(tokens))]
    assert choice["logprobs"]["text_offset"] == whole


def test_cached_tokens_are_those_that_no_choice_computed(artifact: Path) -> None:
    body = {"prompt": ["abcdefghij" * 10, "jihgfedcba" * 10], "max_tokens": 2, "n": 3}
    with serving(artifact, max_sequences=1) as one:  # later choices find what the first one has computed
        first, second = (one.client.post("/v1/completions", json=body).json()["usage"] for _ in range(2))
    assert first["prompt_tokens"] == second["prompt_tokens"] == 200
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] == 192
