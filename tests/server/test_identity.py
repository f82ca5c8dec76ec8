"""Requests that arrive at random, some of them given up, have tokens and log probabilities as each alone."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ssruntime import GenerationConfig
from ssruntime.engine import Engine
from sstool.prompts import read_prompts
from tests.conftest import REPOSITORY
from tests.server.conftest import serving

PROMPTS = [str(record.prompt) for record in read_prompts(REPOSITORY / "recipes" / "demo" / "prompts.jsonl")]


def bodies(count: int) -> list[dict[str, Any]]:
    """Returns requests of all kinds."""
    draw = random.Random(7)
    found = []
    for seed in range(count):
        prompt = draw.choice(PROMPTS)
        body: dict[str, Any] = {
            "prompt": prompt[: draw.choice([1, 9, 40, 400])],
            "max_tokens": draw.choice([1, 2, 5, 20, 60]),
            "seed": seed,
            "temperature": draw.choice([0, 0.7, 0.8, 1.2]),
            "logprobs": draw.choice([0, 3]),
            "ignore_eos": draw.random() < 0.5,
        }
        body |= draw.choice([{}, {}, {"top_p": 0.9}, {"top_k": 20, "min_p": 0.02}])
        body |= draw.choice([{}, {}, {"stop": ["\n\n"]}, {"stop": [" the", "return"]}])
        found.append(body)
    return found


def alone(engine: Engine, body: dict[str, Any]) -> tuple[str, list[float], str]:
    """Returns text, log probabilities and finish reason of a request that shares its passes with nobody."""
    config = GenerationConfig(
        max_new_tokens=body["max_tokens"],
        seed=body["seed"],
        temperature=body["temperature"],
        logprobs=body["logprobs"],
        ignore_eos=body["ignore_eos"],
        top_p=body.get("top_p"),
        top_k=body.get("top_k"),
        min_p=body.get("min_p"),
        stop=tuple(body.get("stop", ())),
    )
    done = engine.generate(body["prompt"], config)
    assert done.logprobs is not None
    return done.text, [one.logprob for one in done.logprobs], {"eos": "stop"}.get(done.finish_reason, done.finish_reason)


async def ask(client: httpx2.AsyncClient, body: dict[str, Any], *, delay: float, is_given_up: bool) -> tuple[str, list[float], str] | None:
    """Sends a request; returns its text, log probabilities and finish reason, unless it is given up."""
    await asyncio.sleep(delay)
    if is_given_up:
        async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
            async for _ in answer.aiter_lines():
                return None
    (choice,) = (await client.post("/v1/completions", json=body)).json()["choices"]
    return choice["text"], choice["logprobs"]["token_logprobs"], choice["finish_reason"]


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_each_is_as_alone(demo_artifact: Path, count: int) -> None:
    draw, asked = random.Random(3), bodies(count)

    async def together(url: str) -> list[tuple[str, list[float], str] | None]:
        limits = httpx2.Limits(max_connections=64)
        async with httpx2.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits) as client:
            span = count * 0.02
            return await asyncio.gather(
                *(ask(client, body, delay=draw.uniform(0, span), is_given_up=draw.random() < 0.15) for body in asked)
            )

    with serving(demo_artifact, max_sequences=5, max_waiting=count) as served:
        found = asyncio.run(together(served.url))
        expected = [alone(served.engine, body) for body in asked]
    kept = [(one, other) for one, other in zip(found, expected, strict=True) if one is not None]
    assert count * 0.7 < len(kept) < count
    assert [one for one, _ in kept] == [other for _, other in kept]
