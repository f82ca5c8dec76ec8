"""Log probabilities of whole answers are written while the completion grows, in the form of the schema."""

from __future__ import annotations

import json

import pytest

from ssruntime.server.routes import growing_json
from ssruntime.server.routes.growing_json import GrowingJson, with_logprobs
from ssruntime.server.schema.chat import AssistantMessage, ChatChoice, ChatLogprobs, ChatResponse, ChatTokenLogprob, TopLogprob
from tests.server.conftest import Served

ENTRIES = [ChatTokenLogprob(text, -0.5, [97], [TopLogprob(text, -0.5, [97])] * 2) for text in ("a", '"logprobs":null', "é")]
HEAD = {"id": "x", "created": 1, "model": "m", "system_fingerprint": "f"}


def response(texts: list[str], logprobs: list[ChatLogprobs | None]) -> ChatResponse:
    choices = [
        ChatChoice(index=index, message=AssistantMessage(content=text), logprobs=one, finish_reason="stop")
        for index, (text, one) in enumerate(zip(texts, logprobs, strict=True))
    ]
    return ChatResponse.model_validate(HEAD | {"choices": choices})


def test_parts_give_the_json_of_the_whole() -> None:
    texts = ['"logprobs":null', '\\"logprobs":null,"', ""]
    wholes = [ChatLogprobs(content=ENTRIES), None, ChatLogprobs(content=[])]
    growing = [GrowingJson() for _ in texts]
    for part in (ENTRIES[:1], [], ENTRIES[1:]):
        growing[0].add(ChatLogprobs(content=part))
    growing[2].add(ChatLogprobs(content=[]))
    assert with_logprobs(response(texts, [None] * 3), growing).decode() == response(texts, wholes).model_dump_json()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_large_answer_is_written_in_small_steps(served: Served, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def written(value: object) -> bytes:
        found = growing_json.to_json(value)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(growing_json, "_json", written)
    chat = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 20}
    body = {"prompt": "a", "logprobs": 20} if path == "/v1/completions" else chat
    answer = served.client.post(path, json=body | {"max_tokens": 300, "ignore_eos": True, "n": 2})
    assert json.loads(answer.content)["usage"]["completion_tokens"] == 600
    assert max(sizes) < len(answer.content) / 5
    assert sum(sizes) > len(answer.content) / 2
