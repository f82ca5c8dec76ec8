"""Requests with the prefix cache give the tokens, logits and KV to the bit that they give without it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssruntime import AsyncEngine, BackendUnavailableError, Completion, ConfigError, GenerationConfig, load
from ssruntime.backends.base import Pass, Slot, StepOutput
from ssruntime.backends.ort.slot import OrtSlot
from ssruntime.engine import Engine
from ssruntime.prefix_cache import BLOCK
from ssruntime.results import Trace
from tests.kv_content import kv_content
from tests.runtime.counts import check_counts

CONTEXT = 400
PLAIN = GenerationConfig(mode="plain", temperature=0.8, seed=3, max_new_tokens=40, ignore_eos=True)
TREES = GenerationConfig(mode="speculative", temperature=0.8, seed=3, max_new_tokens=60, ignore_eos=True, max_alternatives=2)

Digests = dict[int, bytes]


@pytest.fixture(scope="module")
def without(demo_artifact: Path) -> Iterator[Engine]:
    with load(demo_artifact, threads=1, max_context=CONTEXT, prefix_cache=0) as engine:
        yield engine


@pytest.fixture(scope="module")
def open_with(demo_artifact: Path) -> Iterator[Callable[..., Engine]]:
    """A function that opens an engine with a prefix cache."""
    with contextlib.ExitStack() as stack:
        yield lambda **how: stack.enter_context(load(demo_artifact, **{"threads": 1, "max_context": CONTEXT, **how}))


@pytest.fixture
def engine(open_with: Callable[..., Engine]) -> Iterator[Engine]:
    with open_with() as engine:
        yield engine


def prompt_of(engine: Engine, length: int, seed: int = 0) -> list[int]:
    """Returns a random prompt."""
    return np.random.default_rng(seed).integers(3, engine.backend.vocab_size, length).tolist()


def run(engine: Engine, ids: Sequence[int], config: GenerationConfig = PLAIN, namespace: str = "") -> tuple[Completion, Digests]:
    """Returns a completion, and the digests of its logits up to its last token."""
    trace = Trace(logits={})
    done = engine.generate(engine.prepare(ids, config, prefix_namespace=namespace), trace=trace)
    check_counts(done, plain=config.mode == "plain")
    assert trace.logits is not None
    known = len(ids) + len(done.token_ids)
    return done, {position: digest for position, digest in trace.logits.items() if position < known}


def check_same(found: tuple[Completion, Digests], expected: tuple[Completion, Digests]) -> None:
    """Asserts that two completions are the same to the bit."""
    assert found[0].token_ids == expected[0].token_ids
    assert (found[0].text, found[0].finish_reason) == (expected[0].text, expected[0].finish_reason)
    assert found[1].keys() & expected[1].keys()
    assert all(expected[1][position] == digest for position, digest in found[1].items() if position in expected[1])


def entries(engine: Engine, stop: int) -> dict[str, bytes]:
    """Returns the KV-cache entries `[0, stop)` that the last request left in the slot that it had."""
    slot = engine.backend.acquire(0)
    assert isinstance(slot, OrtSlot)
    try:
        return {name: content[:, :stop].tobytes() for name, content in kv_content(slot).items()}
    finally:
        engine.backend.release(slot)


@pytest.mark.parametrize("change", [-2 * BLOCK, -BLOCK - 1, -BLOCK, -1, 0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 100])
@pytest.mark.parametrize("length", [3 * BLOCK, 3 * BLOCK + 1, 4 * BLOCK - 1])
def test_a_prompt_that_is_like_a_known_one_shorter_or_longer(engine: Engine, without: Engine, length: int, change: int) -> None:
    ids = prompt_of(engine, 200)
    first = dataclasses.replace(PLAIN, max_new_tokens=1)
    assert run(engine, ids[:length], first)[0].stats.cached_tokens == 0
    found = run(engine, ids[: length + change])
    stop = length + change + len(found[0].token_ids) - 1
    kv = entries(engine, stop)
    check_same(found, run(without, ids[: length + change]))
    assert found[0].stats.cached_tokens == min(length // BLOCK, (length + change - 1) // BLOCK) * BLOCK
    assert kv == entries(without, stop)


@pytest.mark.parametrize("config", [PLAIN, TREES, dataclasses.replace(TREES, mode="auto", temperature=0.0)])
def test_the_next_turn_of_a_chat_finds_the_answer_too(engine: Engine, without: Engine, config: GenerationConfig) -> None:
    ids = prompt_of(engine, 50)
    alternatives = 0
    for turn in range(4):
        found = run(engine, ids, config)
        check_same(found, run(without, ids, config))
        assert found[0].stats.cached_tokens >= ((len(ids) - 8) // BLOCK * BLOCK if turn else 0)
        alternatives += found[0].stats.alternatives_accepted
        stop = len(ids) + len(found[0].token_ids) - 2  # the entries of alternatives are not in their places
        assert config is not PLAIN or entries(engine, stop) == entries(without, stop)
        ids += [*found[0].token_ids, *prompt_of(engine, 5, turn)]
    assert alternatives > 0 or config is not TREES


def test_what_follows_alternatives_is_kept_as_prefill_computes_it(engine: Engine, without: Engine) -> None:
    ids = prompt_of(engine, 30)
    ids += run(engine, ids, TREES)[0].token_ids
    one = dataclasses.replace(PLAIN, max_new_tokens=1)
    assert run(engine, ids, one)[0].stats.cached_tokens == (len(ids) - 1) // BLOCK * BLOCK
    run(without, ids, one)
    assert entries(engine, len(ids)) == entries(without, len(ids))


def test_namespaces_never_share(engine: Engine, without: Engine) -> None:
    ids = prompt_of(engine, 70)
    expected = run(without, ids)
    for namespace in ("", "one", "two"):
        for cached in (0, 64):
            found = run(engine, ids, namespace=namespace)
            check_same(found, expected)
            assert found[0].stats.cached_tokens == cached
    stats = engine.prefix_cache.stats()
    assert (stats.asked_tokens, stats.found_tokens) == (6 * 70, 3 * 64)


def test_a_small_cache_forgets(open_with: Callable[..., Engine], without: Engine) -> None:
    entry = without.backend.kv_entry_bytes
    with open_with(prefix_cache=7 * BLOCK * entry) as engine:
        for seed in (0, 1, 0, 0, 1):
            ids = prompt_of(engine, 60, seed)
            check_same(run(engine, ids), run(without, ids))
            assert engine.prefix_cache.stats().kept_bytes <= engine.prefix_cache.stats().capacity_bytes == 7 * BLOCK * entry
        assert 0 < engine.prefix_cache.stats().found_tokens < 4 * 48


def test_at_the_end_of_the_context(engine: Engine, without: Engine) -> None:
    ids = prompt_of(engine, CONTEXT - 1)
    for length in (CONTEXT - 1, CONTEXT - 1, CONTEXT - 20, CONTEXT - 2):
        for config in (PLAIN, TREES):
            found = run(engine, ids[:length], config)
            check_same(found, run(without, ids[:length], config))
            assert found[0].finish_reason == "context"
    assert engine.prefix_cache.stats().found_tokens > 0


def test_size_0_switches_it_off(without: Engine) -> None:
    ids = prompt_of(without, 70)
    assert [run(without, ids)[0].stats.cached_tokens for _ in range(2)] == [0, 0]
    assert without.prefix_cache.stats() == (0, 0, 0, 0, 0)


def test_default_sizes(open_with: Callable[..., Engine], without: Engine) -> None:
    """A context of KV where passes are exact to the bit, and nothing elsewhere."""
    size = CONTEXT // BLOCK * BLOCK * without.backend.kv_entry_bytes
    with open_with() as exact, open_with(bit_exact=False) as other, open_with(bit_exact=False, prefix_cache=size) as chosen:
        assert [one.prefix_cache.stats().capacity_bytes for one in (exact, other, chosen)] == [size, 0, size]
        ids = prompt_of(chosen, 70)
        assert [chosen.generate(ids, PLAIN).stats.cached_tokens for _ in range(2)] == [0, 64]


@pytest.mark.parametrize("given_size", [-1, 1, 1.5, True, "1"])
def test_other_sizes_are_refused_in_one_line(demo_artifact: Path, given_size: object) -> None:
    with pytest.raises(ConfigError, match=r"^prefix_cache ") as caught:
        load(demo_artifact, prefix_cache=given_size)  # type: ignore[arg-type]
    assert "\n" not in f"{caught.value.message}{caught.value.hint}"
    assert caught.value.hint


def test_a_namespace_is_chosen_once_and_is_a_text(engine: Engine) -> None:
    request = engine.prepare([5, 6], PLAIN, prefix_namespace="one")
    assert engine.prepare(request) is request
    with pytest.raises(ConfigError, match="prepared request"):
        engine.prepare(request, prefix_namespace="two")
    with pytest.raises(ConfigError, match="must be a text"):
        engine.prepare([5, 6], prefix_namespace=None)  # type: ignore[arg-type]


def test_asyncio_requests_have_namespaces(engine: Engine) -> None:
    ids = prompt_of(engine, 70)

    async def cached(namespace: str) -> int:
        async with AsyncEngine(engine) as requests:
            done = await requests.generate(await requests.prepare(ids, PLAIN, prefix_namespace=namespace))
            return done.stats.cached_tokens

    assert [asyncio.run(cached(namespace)) for namespace in ("one", "one", "two")] == [0, 64, 0]


class Gate:
    """Stands before a backend's `run`, and can hold passes up or make them fail."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_open, self.is_reached = threading.Event(), threading.Event()
        self.is_open.set()
        self.fails: Callable[[Pass], BaseException | None] = lambda _: None
        self._real = engine.backend.run
        monkeypatch.setattr(engine.backend, "run", self.run)

    def run(self, passes: Sequence[tuple[Slot, Pass]]) -> list[StepOutput]:
        """Takes the place of `Backend.run`."""
        self.is_reached.set()
        assert self.is_open.wait(60)
        for _, wanted in passes:
            if (error := self.fails(wanted)) is not None:
                raise error
        return self._real(passes)


def test_only_the_rest_of_a_known_prompt_is_run(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, passes = Gate(engine, monkeypatch), list[Pass]()
    gate.fails = passes.append
    ids = prompt_of(engine, 300)
    for first in (0, 288):
        passes.clear()
        run(engine, ids)
        prompt = [wanted for wanted in passes if wanted.kind == "prefill"]
        assert prompt[0].start == first
        assert [token for wanted in prompt for token in wanted.trunk] == ids[first:]


def test_requests_that_wait_for_a_prefill_find_it(engine: Engine, without: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them joined when nothing was known."""
    gate = Gate(engine, monkeypatch)
    shared = prompt_of(engine, 200)
    prompts = [[*shared, *prompt_of(engine, 10, seed)] for seed in range(4)]
    gate.is_open.clear()
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(run, engine, ids) for ids in prompts]
        while len(engine._batch._members) < 4:
            time.sleep(0.001)
        gate.is_open.set()
        done = [one.result() for one in running]
    for found, ids in zip(done, prompts, strict=True):
        check_same(found, run(without, ids))
    assert sorted(found[0].stats.cached_tokens for found in done) == [0, 192, 192, 192]


def test_a_prompt_that_was_cancelled_is_kept_as_far_as_it_was_run(engine: Engine, without: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(engine, monkeypatch)
    ids = prompt_of(engine, 390)
    cancel = threading.Event()

    def cancel_later(wanted: Pass) -> None:
        if wanted.start > 0:
            cancel.set()

    gate.fails = cancel_later
    config = dataclasses.replace(PLAIN, max_new_tokens=100)
    assert engine.generate(ids, config, cancel=cancel).finish_reason == "cancelled"
    kept = engine.prefix_cache.stats().kept_tokens
    assert kept >= 256
    found = run(engine, ids)
    check_same(found, run(without, ids))
    assert found[0].stats.cached_tokens == min(kept, 384)


def test_a_request_that_failed_leaves_nothing_of_its_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(engine, monkeypatch)
    ids = prompt_of(engine, 40)
    gate.fails = lambda wanted: RuntimeError("the engine fails") if wanted.start >= 70 else None
    with pytest.raises(RuntimeError):
        engine.generate(ids, PLAIN)
    assert engine.prefix_cache.stats().kept_tokens == 32


@pytest.mark.parametrize("error", [MemoryError("no room"), KeyboardInterrupt()])
def test_a_copy_that_fails_ends_its_request_only(
    engine: Engine, without: Engine, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    ids = prompt_of(engine, 70)
    run(engine, ids)

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(OrtSlot, "write_kv", fail)
        with pytest.raises(type(error)):
            engine.generate(ids, PLAIN)
    assert not engine._batch._members
    check_same(run(engine, ids), run(without, ids))


def test_an_interrupted_copy_ends_the_request_of_another_thread(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that is interrupted runs the passes of both requests."""
    ids = prompt_of(engine, 70)
    run(engine, ids)
    gate = Gate(engine, monkeypatch)
    gate.is_open.clear()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as pool:
        driving = pool.submit(engine.generate, prompt_of(engine, 5, 1), PLAIN)
        assert gate.is_reached.wait(60)
        other = pool.submit(engine.generate, ids, PLAIN)
        while len(engine._batch._members) < 2:
            time.sleep(0.001)
        with monkeypatch.context() as patch:
            patch.setattr(OrtSlot, "write_kv", interrupt)
            gate.is_open.set()
            with pytest.raises(KeyboardInterrupt):
                driving.result()
            with pytest.raises(BackendUnavailableError, match="was interrupted"):
                other.result()
    assert not engine._batch._members


def test_a_forked_process_neither_hangs_nor_keeps(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(engine, monkeypatch)
    stream = engine.stream(prompt_of(engine, 40), PLAIN)
    next(stream)
    gate.is_open.clear()
    gate.is_reached.clear()
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(engine.generate, prompt_of(engine, 60, 1), PLAIN)
        assert gate.is_reached.wait(60)
        child = os.fork()
        if child == 0:
            stream.close()  # type: ignore[attr-defined]
            os._exit(0 if engine.prefix_cache.stats().kept_tokens == 0 else 1)
        _, status = os.waitpid(child, 0)
        gate.is_open.set()
        rest.result()
    assert os.waitstatus_to_exitcode(status) == 0
    stream.close()  # type: ignore[attr-defined]


def test_memory_that_was_written_from_the_cache_is_given_back(engine: Engine) -> None:
    slot = engine.backend.new_slot(CONTEXT)
    assert isinstance(slot, OrtSlot)
    blocks = [np.full(BLOCK * engine.backend.kv_entry_bytes, number + 1, dtype=np.uint8) for number in range(3)]
    slot.write_kv(BLOCK, blocks)
    found = [np.zeros_like(block) for block in blocks]
    slot.read_kv(BLOCK, found)
    assert all((one == block).all() for one, block in zip(found, blocks, strict=True))
    assert all((content[:, :BLOCK] == 0).all() and (content[:, BLOCK : 4 * BLOCK] != 0).all() for content in kv_content(slot).values())
    with pytest.raises(ValueError, match="outside the context"):
        slot.write_kv(CONTEXT - 2 * BLOCK, blocks)
    slot.trim(everything=True)
    assert all((content == 0).all() for content in kv_content(slot).values())


@dataclasses.dataclass(frozen=True)
class Job:
    """One request of a random load."""

    ids: tuple[int, ...]
    config: GenerationConfig
    namespace: str
    reads: int | None
    """Chunks after which the stream is closed; None for all."""


def jobs_of(engine: Engine, seed: int, count: int) -> list[Job]:
    """Returns random requests of which many begin alike; a seed always gives the same ones."""
    draw = random.Random(seed)
    texts = [prompt_of(engine, draw.choice([20, 64, 65, 200]), seed + number) for number in range(3)]
    found = []
    for number in range(count):
        text = draw.choice(texts)
        text = text[: draw.choice([len(text), len(text), draw.randint(1, len(text)), len(text) // BLOCK * BLOCK or 1])]
        ids = text + prompt_of(engine, draw.choice([0, 0, 1, 17]), seed + 10 * number)
        config = GenerationConfig(
            max_new_tokens=draw.randint(1, 60),
            temperature=draw.choice([0.0, 0.8, 1.3]),
            seed=draw.randint(0, 3),
            mode=draw.choice(["plain", "speculative", "ngram", "auto"]),
            ignore_eos=draw.random() < 0.7,
            stop=["e"] if draw.random() < 0.2 else [],
            max_alternatives=draw.choice([0, 2]),
        )
        if config.mode in ("plain", "ngram"):
            config = dataclasses.replace(config, max_alternatives=None)
        found.append(Job(tuple(ids), config, draw.choice(["", "", "other"]), draw.choice([None, None, None, 1, 3])))
    return found


def decoded(engine: Engine, one: Job) -> tuple[list[int], Digests]:
    """Returns the tokens and the digests of the logits of a request, as far as it is read."""
    trace, tokens = Trace(logits={}), list[int]()
    stream = engine.stream(engine.prepare(one.ids, one.config, prefix_namespace=one.namespace), trace=trace)
    with contextlib.closing(stream):  # type: ignore[type-var]
        for number, chunk in enumerate(stream):
            tokens += chunk.token_ids
            if number + 1 == one.reads:
                break
    assert trace.logits is not None
    return tokens, {position: digest for position, digest in trace.logits.items() if position < len(one.ids) + len(tokens)}


@pytest.fixture(scope="module")
def small(open_with: Callable[..., Engine], without: Engine) -> Engine:
    """An engine whose cache holds less than the texts, and keeps its content from one example to the next."""
    return open_with(prefix_cache=20 * BLOCK * without.backend.kv_entry_bytes)


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 5))
def test_any_mix_of_requests_gives_each_what_it_gets_without(small: Engine, without: Engine, seed: int, count: int, threads: int) -> None:
    jobs = jobs_of(small, seed, count)
    expected = [decoded(without, one) for one in jobs]
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda one: decoded(small, one), jobs))
    for (tokens, logits), (all_tokens, all_logits), one in zip(found, expected, jobs, strict=True):
        count = min(len(tokens), len(all_tokens))
        assert tokens[:count] == all_tokens[:count]
        assert one.reads is not None or len(tokens) == len(all_tokens)
        assert all(all_logits[position] == logits[position] for position in logits.keys() & all_logits.keys())
    assert not small._batch._members
