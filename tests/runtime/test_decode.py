"""Speculative decoding emits the tokens of autoregressive decoding (mode `plain`), and counts its work.

The tokens are compared greedily and with coupled sampling, for any draft, length and stopping rule.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssruntime import GenerationConfig, Trace
from ssruntime.engine import Engine
from tests.runtime.conftest import OpenScript
from tests.runtime.counts import check_counts
from tests.runtime.scripted import Script, plain_tokens, random_script, successor_table

CONTEXT = 64
SCRIPTS = {
    "agreeing": random_script(1, agreement=0.85),
    "disagreeing": random_script(2, agreement=0.3),
    "history": random_script(3, agreement=0.8, history=True),
    "packed": random_script(4, vocab=32, agreement=0.7, history=True),
    "tiny": random_script(5, vocab=3, period=2),
    "flat": random_script(6, scale=0.3),
}


@pytest.fixture(scope="session")
def engines(open_script: OpenScript) -> dict[str, Engine]:
    return {name: open_script(script, max_context=CONTEXT) for name, script in SCRIPTS.items()}


@pytest.fixture(scope="session")
def equal_engine(open_script: OpenScript) -> Engine:
    """An engine whose draft is the full model."""
    table = SCRIPTS["agreeing"].verify
    return open_script(Script(verify=table, draft=table), max_context=CONTEXT)


decoding = st.fixed_dictionaries(
    {
        "max_new_tokens": st.integers(1, 70),
        "max_draft": st.integers(1, 15),
        "max_alternatives": st.sampled_from([None, 0, 1, 2, 3]),
        "seed": st.integers(0, 2**63 - 1),
        "ignore_eos": st.booleans(),
        "stop_token_ids": st.sampled_from([(), (), (1,)]),
        "temperature": st.sampled_from([0.0, 0.0, 0.5, 0.8, 1.0, 1.7]),
        "top_k": st.sampled_from([None, 0, 1, 2, 5]),
        "top_p": st.sampled_from([None, 0.5, 0.9, 1.0]),
        "min_p": st.sampled_from([None, 0.05]),
    }
).flatmap(
    lambda how: st.sampled_from([0, 0, 1, how["max_new_tokens"] // 2, how["max_new_tokens"]]).map(lambda n: how | {"min_new_tokens": n})
)
stopping_rules = st.one_of(
    st.just({"exit": "fixed"}),
    st.builds(lambda t: {"exit": "confidence", "exit_threshold": t}, st.floats(0, 1)),
    st.builds(lambda t: {"exit": "adaptive", "exit_threshold": t}, st.floats(0, 1)),
    st.just({}),
)
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=CONTEXT - 1)


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(SCRIPTS)), prompt=prompts, how=decoding, stopping=stopping_rules)
def test_speculative_and_plain_decoding_match_the_tables(
    engines: dict[str, Engine], name: str, prompt: list[int], how: dict[str, object], stopping: dict[str, object]
) -> None:
    engine, config = engines[name], GenerationConfig.from_mapping({**how, **stopping})
    plain = engine.generate(prompt, dataclasses.replace(config, mode="plain"))
    speculative = engine.generate(prompt, config)
    expected = plain_tokens(SCRIPTS[name], prompt, engine.settings(config), CONTEXT)
    assert (plain.token_ids, plain.finish_reason) == expected
    assert (speculative.token_ids, speculative.finish_reason) == expected
    assert speculative.text == plain.text
    check_counts(plain, plain=True)
    check_counts(speculative, plain=False)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    vocab=st.integers(3, 40),
    period=st.integers(1, 6),
    agreement=st.floats(0, 1),
    history=st.booleans(),
    how=decoding,
)
def test_decoding_matches_any_random_tables(
    open_script: OpenScript, seed: int, vocab: int, period: int, agreement: float, history: bool, how: dict[str, object]
) -> None:
    script = random_script(seed, vocab=vocab, period=period, agreement=agreement, history=history)
    config = GenerationConfig.from_mapping(how)
    with open_script(script, max_context=CONTEXT) as engine:
        completion = engine.generate([1, 2, 0], config)
        assert (completion.token_ids, completion.finish_reason) == plain_tokens(script, [1, 2, 0], engine.settings(config), CONTEXT)


@pytest.mark.parametrize("max_draft", range(1, 16))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_equal_to_the_target_is_always_accepted(equal_engine: Engine, max_draft: int, temperature: float) -> None:
    config = GenerationConfig(
        max_new_tokens=40, exit="fixed", max_draft=max_draft, temperature=temperature, seed=3, ignore_eos=True, sampling="coupled"
    )
    stats = equal_engine.generate([1], config).stats
    assert stats.accepted == stats.proposed
    # Prefill gives one token, and the rounds give 39, max_draft + 1 each; the last round may be shorter.
    assert stats.rounds == -(-39 // (max_draft + 1))
    assert stats.proposed == 39 - stats.rounds


def test_rejection_sampling_accepts_everything_from_an_equal_draft(open_script: OpenScript) -> None:
    table = SCRIPTS["flat"].verify
    with open_script(Script(verify=table, draft=table)) as engine:
        config = GenerationConfig(sampling="rejection", temperature=1.0, exit="fixed", max_draft=4, max_new_tokens=41, ignore_eos=True)
        for seed in range(20):
            stats = engine.generate([1], dataclasses.replace(config, seed=seed)).stats
            assert (stats.rounds, stats.proposed, stats.accepted) == (8, 32, 32)


@pytest.mark.parametrize("sampling", ["greedy", "coupled", "rejection"])
def test_nothing_is_accepted_from_a_draft_that_is_never_right(open_script: OpenScript, sampling: str) -> None:
    vocab = 5
    right = successor_table([1, 2, 3, 4, 1], vocab=vocab, sharpness=200.0)
    wrong = successor_table([2, 3, 4, 1, 2], vocab=vocab, sharpness=200.0)
    how: dict[str, object] = {"temperature": 0.0} if sampling == "greedy" else {"temperature": 1.0, "sampling": sampling}
    with open_script(Script(verify=right, draft=wrong)) as engine:
        config = GenerationConfig.from_mapping({**how, "exit": "fixed", "max_draft": 3, "max_new_tokens": 11, "seed": 5})
        completion = engine.generate([4], config)
    assert completion.token_ids == [1, 2, 3, 4] * 2 + [1, 2, 3]
    stats = completion.stats
    # 10 rounds of one token each; the last three have room for 2, 1 and 0 draft tokens.
    assert (stats.rounds, stats.accepted, stats.emitted, stats.proposed) == (10, 0, 10, 7 * 3 + 2 + 1)


def test_prompts_longer_than_one_prefill_chunk_decode_correctly(open_script: OpenScript) -> None:
    script = random_script(9, history=True, period=7)
    random = np.random.default_rng(0)
    with open_script(script, max_context=900) as engine:
        for length in (255, 256, 257, 511, 512, 513, 800):
            prompt = random.integers(0, script.vocab, length).tolist()
            config = GenerationConfig(max_new_tokens=20, temperature=0.8, seed=length, ignore_eos=True)
            expected = plain_tokens(script, prompt, engine.settings(config), 900)
            completion = engine.generate(prompt, config)
            assert (completion.token_ids, completion.finish_reason) == expected
            assert completion.prompt_tokens == length


@settings(max_examples=40)
@given(how=decoding, stopping=stopping_rules)
def test_a_trace_can_be_replayed(engines: dict[str, Engine], how: dict[str, object], stopping: dict[str, object]) -> None:
    """Verifying the rounds of a trace again, on another slot, gives the tokens that were committed."""
    engine, trace = engines["history"], Trace()
    greedy = {"temperature": 0.0, "top_k": None, "top_p": None, "min_p": None, "min_new_tokens": 0}
    config = GenerationConfig.from_mapping({**how, **stopping, **greedy})
    completion = engine.generate([2, 1, 2], config, trace=trace)
    assert trace.prompt_ids == [2, 1, 2]
    assert len(trace.rounds) == completion.stats.rounds
    assert sum(len(r.tree.branches) for r in trace.rounds) == completion.stats.alternatives
    assert sum(r.alternative is not None for r in trace.rounds) == completion.stats.alternatives_accepted
    assert sum(r.proposed for r in trace.rounds) == completion.stats.proposed
    slot = engine.backend.acquire(None)
    try:
        tokens = [int(slot.prefill(trace.prompt_ids).tokens[0])]
        ids, pending = [*trace.prompt_ids, *tokens], 1
        for step in trace.rounds:
            position, tree = len(ids), step.tree
            assert step.start == position - pending
            assert list(tree.trunk[:pending]) == ids[step.start :]
            drafted = tree.trunk[pending:]
            assert len(drafted) == step.proposed
            samples = slot.verify(tree.trunk, step.start, tree.branches).tokens.tolist()
            after = samples[pending - 1 :]
            accepted = next((i for i, p in enumerate(drafted) if p != after[i]), len(drafted))
            ids += after[: accepted + 1]
            found = [(depth - pending + 1, token) for depth, token in tree.branches]
            assert step.alternative == (found.index((accepted, ids[-1])) if (accepted, ids[-1]) in found else None)
            pending = 1
            if step.alternative is not None:
                ids.append(samples[tree.branch_row(step.alternative)])
                pending = 2
        tokens = ids[len(trace.prompt_ids) :]
    finally:
        engine.backend.release(slot)
    assert tokens[: len(completion.token_ids)] == completion.token_ids
    assert len(tokens) - len(completion.token_ids) == completion.stats.discarded


def test_a_trace_of_plain_mode_has_rounds_without_proposals(engines: dict[str, Engine]) -> None:
    trace = Trace()
    completion = engines["agreeing"].generate([1, 2], GenerationConfig(mode="plain", max_new_tokens=6, ignore_eos=True), trace=trace)
    assert [(r.start, r.proposed) for r in trace.rounds] == [(2 + i, 0) for i in range(5)]
    assert len(completion.token_ids) == 6


def test_equal_seeds_give_equal_texts_and_other_seeds_other_texts(engines: dict[str, Engine]) -> None:
    engine = engines["flat"]
    for sampling in ("coupled", "rejection"):
        config = GenerationConfig(temperature=1.0, sampling=sampling, seed=11, max_new_tokens=30, ignore_eos=True, deterministic=True)
        first, again = engine.generate([1], config), engine.generate([1], config)
        other = engine.generate([1], dataclasses.replace(config, seed=12))
        assert first.token_ids == again.token_ids
        assert first.token_ids != other.token_ids
        assert first.seed == 11
    unseeded = GenerationConfig(temperature=1.0, max_new_tokens=30, ignore_eos=True)
    drawn = engine.generate([1], unseeded)
    assert engine.generate([1], dataclasses.replace(unseeded, seed=drawn.seed)).token_ids == drawn.token_ids


def test_a_trace_that_is_used_again_holds_the_last_request_only(engines: dict[str, Engine]) -> None:
    engine, again, once = engines["history"], Trace(logits={}), Trace(logits={})
    config = GenerationConfig(max_new_tokens=12, temperature=0.0, ignore_eos=True, deterministic=True)
    engine.generate([2, 1, 2, 2], config, trace=again)
    engine.generate([1, 2], config, trace=again)
    engine.generate([1, 2], config, trace=once)
    assert again == once
