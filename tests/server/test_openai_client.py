"""OpenAI's own Python client, unmodified, gets what it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from ssruntime import GenerationConfig
from tests.server.conftest import Served

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def expected(served: Served, prompt: object, tokens: int, seed: int = 3) -> str:
    config = GenerationConfig(temperature=0.7, seed=seed, max_new_tokens=tokens)
    return served.engine.generate(prompt, config).text  # type: ignore[arg-type]


def test_completions(served: Served, client: openai.OpenAI) -> None:
    found = client.completions.create(model="scripted", prompt="abc", max_tokens=30, temperature=0.7, seed=3, n=2, logprobs=2)
    assert [choice.text for choice in found.choices] == [expected(served, "abc", 30), expected(served, "abc", 30, seed=4)]
    assert found.usage is not None
    assert found.usage.prompt_tokens == 3
    assert found.choices[0].logprobs is not None
    assert len(found.choices[0].logprobs.tokens or ()) == len(found.choices[0].logprobs.token_logprobs or ()) > 0


def test_chat(served: Served, client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="scripted", messages=MESSAGES, max_completion_tokens=30, temperature=0.7, seed=3, logprobs=True, top_logprobs=3
    )
    assert found.choices[0].message.content == expected(served, MESSAGES, 30)
    assert found.choices[0].finish_reason in ("length", "stop")
    assert found.choices[0].logprobs is not None
    assert found.choices[0].logprobs.content is not None
    assert all(len(token.top_logprobs) == 3 for token in found.choices[0].logprobs.content)


def test_streams(served: Served, client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="scripted",
        messages=MESSAGES,
        max_tokens=30,
        temperature=0.7,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == expected(served, MESSAGES, 30)
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] in ("length", "stop")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    pieces = client.completions.create(model="scripted", prompt="abc", max_tokens=30, temperature=0.7, seed=3, stream=True)
    assert "".join(one.choices[0].text for one in pieces) == expected(served, "abc", 30)


def test_the_client_s_own_helper_for_streams(served: Served, client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="scripted", messages=MESSAGES, max_tokens=30, temperature=0.7, seed=3) as stream:
        done = stream.get_final_completion()
    assert done.choices[0].message.content == expected(served, MESSAGES, 30)


def test_many_at_once(served: Served) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            answers = [
                client.chat.completions.create(model="scripted", messages=MESSAGES, max_tokens=30, temperature=0.7, seed=seed)
                for seed in range(20)
            ]
            return [one.choices[0].message.content for one in await asyncio.gather(*answers)]

    assert asyncio.run(ask()) == [expected(served, MESSAGES, 30, seed) for seed in range(20)]


def test_models_errors_and_time_outs(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scripted"]
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="frequency_penalty") as caught:
        client.chat.completions.create(model="scripted", messages=MESSAGES, frequency_penalty=1)
    assert caught.value.param == "frequency_penalty"
    with pytest.raises(openai.BadRequestError, match="unknown parameter") as caught:
        client.chat.completions.create(model="scripted", messages=MESSAGES, extra_body={"grammar": "x"})
    assert caught.value.code == "unknown_parameter"
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.05).completions.create(
            model="scripted", prompt="abc", max_tokens=2900, extra_body={"ignore_eos": True}
        )
