"""Log probabilities are those of the target's own rows, whatever was drafted and who shared the passes."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssruntime import AsyncEngine, Completion, ConfigError, GenerationConfig, TokenLogprob
from ssruntime.engine import Engine
from ssruntime.logprobs import token_logprob
from tests.runtime.conftest import OpenScript
from tests.runtime.scripted import Script, random_script

SCRIPT = random_script(31, vocab=24, history=True, agreement=0.75)
PROMPT = [1, 3, 2]


@pytest.fixture(scope="module")
def engine(open_script: OpenScript) -> Engine:
    return open_script(SCRIPT, max_context=120, max_sequences=3)


def reference(script: Script, done: Completion, top: int) -> list[TokenLogprob]:
    """Returns the log probabilities from the tables, in the definition's own terms."""
    found = []
    for index, token in enumerate(done.token_ids):
        row = script.target([*PROMPT, *done.token_ids[:index]]).astype(np.float64)
        scores = row - row.max() - math.log(np.exp(row - row.max()).sum())
        best = sorted(range(len(scores)), key=lambda one: (-row[one], one))[:top]
        found.append(TokenLogprob(scores[token], tuple((one, scores[one]) for one in best)))
    return found


@settings(max_examples=60)
@given(
    mode=st.sampled_from(["plain", "speculative", "ngram", "auto"]),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
    sampling=st.sampled_from(["coupled", "rejection"]),
    top=st.integers(0, 20),
    length=st.integers(1, 60),
    seed=st.integers(0, 999),
    stop=st.sampled_from([(), ("ab",)]),
)
def test_each_token_has_its_own(
    engine: Engine, mode: str, temperature: float, sampling: str, top: int, length: int, seed: int, stop: tuple[str, ...]
) -> None:
    config = GenerationConfig(
        mode=mode, temperature=temperature, sampling=sampling, logprobs=top, max_new_tokens=length, seed=seed, stop=stop, min_new_tokens=1
    )
    done = engine.generate(PROMPT, config)
    assert done.logprobs is not None
    expected = reference(SCRIPT, done, top)
    assert [[token for token, _ in one.top] for one in done.logprobs] == [[token for token, _ in one.top] for one in expected]
    np.testing.assert_allclose([one.logprob for one in done.logprobs], [one.logprob for one in expected], rtol=0, atol=1e-12)
    assert all(one.top == () or one.logprob <= one.top[0][1] for one in done.logprobs)
    chunks = [one for chunk in engine.stream(PROMPT, config) for one in chunk.logprobs]
    if sampling == "coupled" or mode == "plain" or temperature == 0.0:
        assert chunks == done.logprobs  # to the bit: the same rows


def test_they_are_the_same_in_a_batch(engine: Engine) -> None:
    configs = [GenerationConfig(logprobs=3, seed=seed, temperature=0.8, max_new_tokens=40, ignore_eos=True) for seed in range(9)]
    alone = [engine.generate(PROMPT, config) for config in configs]
    with ThreadPoolExecutor(len(configs)) as threads:
        together = list(threads.map(lambda config: engine.generate(PROMPT, config), configs))
    assert [done.logprobs for done in together] == [done.logprobs for done in alone]

    async def read() -> Completion:
        async with AsyncEngine(engine) as requests:
            return await requests.generate(PROMPT, configs[0])

    assert asyncio.run(read()).logprobs == alone[0].logprobs


def test_nobody_pays_who_does_not_ask(engine: Engine) -> None:
    assert engine.generate(PROMPT, GenerationConfig(max_new_tokens=9)).logprobs is None
    assert not any(chunk.logprobs for chunk in engine.stream(PROMPT, GenerationConfig(max_new_tokens=9)))


def test_they_exclude_alternatives(engine: Engine) -> None:
    assert engine.settings(GenerationConfig()).max_alternatives > 0
    assert engine.settings(GenerationConfig(logprobs=0)).max_alternatives == 0
    with pytest.raises(ConfigError, match="logprobs cannot be reported with max_alternatives"):
        engine.settings(GenerationConfig(logprobs=0, max_alternatives=1))
    with pytest.raises(ConfigError, match="logprobs is out of range"):
        GenerationConfig(logprobs=21)


def test_ties_and_extremes() -> None:
    tied = np.array([1.0, 2.0, 2.0, 2.0, -np.inf], dtype=np.float32)
    found = token_logprob(tied, 3, 2)
    assert [token for token, _ in found.top] == [1, 2]
    assert found.logprob == found.top[0][1] == pytest.approx(math.log(1 / (3 + math.exp(-1))))
    assert token_logprob(tied, 4, 0) == (-math.inf, ())
    assert len(token_logprob(tied, 0, 20).top) == len(tied)
    assert token_logprob(np.array([3e38, -3e38], dtype=np.float32), 0, 1).logprob == 0.0


def test_rounds_are_counted_by_source_and_accepted_tokens(engine: Engine) -> None:
    stats = engine.generate(
        PROMPT, GenerationConfig(mode="speculative", exit="fixed", max_draft=4, max_new_tokens=60, ignore_eos=True)
    ).stats
    assert sum(stats.outcomes.values()) <= stats.rounds
    assert sum(len(sources) * count for (sources, _), count in stats.outcomes.items()) == stats.proposed
    assert sum(accepted * count for (_, accepted), count in stats.outcomes.items()) == stats.accepted
    assert {source for sources, _ in stats.outcomes for source in sources} == {"skip"}
