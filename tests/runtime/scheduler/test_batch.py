"""Requests of several threads share passes, and each gets what it gets alone."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssruntime import GenerationConfig, load
from ssruntime.backends.base import Backend, Pass, Slot, StepOutput
from ssruntime.engine import Engine
from ssruntime.results import Trace
from ssruntime.scheduler.member import READ_AHEAD
from tests.runtime.conftest import OpenScript
from tests.runtime.scripted import random_script

SCRIPT = random_script(21, vocab=24, history=True, agreement=0.8)
LONG = GenerationConfig(max_new_tokens=150, ignore_eos=True, temperature=0.8, seed=5, mode="speculative", exit="fixed", max_draft=3)


class Spy:
    """Stands before a backend's `run`; records how many requests share each pass, and can hold passes up."""

    def __init__(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.kinds: list[set[str]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.fails: Callable[[Sequence[tuple[Slot, Pass]]], BaseException | None] = lambda _: None
        self._real = backend.run
        monkeypatch.setattr(backend, "run", self.run)

    def run(self, passes: Sequence[tuple[Slot, Pass]]) -> list[StepOutput]:
        """Takes the place of `Backend.run`."""
        assert self.may_run.wait(60)
        self.sizes.append(len(passes))
        self.kinds.append({wanted.kind for _, wanted in passes})
        if (error := self.fails(passes)) is not None:
            raise error
        return self._real(passes)


@pytest.fixture
def engine(open_script: OpenScript) -> Engine:
    return open_script(SCRIPT, max_context=400, max_sequences=4)


@pytest.fixture
def spy(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    # The engine lives as long as the tests; so the batch must look the method up again.
    found = Spy(engine.backend, monkeypatch)
    yield found
    found.may_run.set()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def waiting(engine: Engine) -> int:
    """Returns how many requests are in the batch."""
    return len(engine._batch._members)


def test_requests_of_several_threads_share_passes(engine: Engine, spy: Spy) -> None:
    prompts = [[1, 2, 3], [4, 5], [6], [2, 2, 2, 2]]
    alone = [engine.generate(prompt, LONG).token_ids for prompt in prompts]
    assert set(spy.sizes) == {1}
    spy.sizes.clear()
    spy.may_run.clear()
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(engine.generate, prompt, LONG) for prompt in prompts]
        until(lambda: waiting(engine) == 4)
        spy.may_run.set()
        assert [one.result().token_ids for one in running] == alone
    assert spy.sizes.count(4) > len(spy.sizes) / 3
    assert all(len(kinds) == 1 for kinds in spy.kinds)
    assert all(size == 1 for size, kinds in zip(spy.sizes, spy.kinds[-len(spy.sizes) :], strict=True) if "prefill" in kinds)
    assert waiting(engine) == 0


def test_rounds_are_in_step(engine: Engine, spy: Spy) -> None:
    """Draft steps of all come before the verify pass of all, whenever each of them joined."""
    spy.may_run.clear()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(engine.generate, prompt, LONG) for prompt in ([1, 2, 3], [4, 5])]
        until(lambda: waiting(engine) == 2)
        spy.may_run.set()
        for one in running:
            one.result()
    both = [kinds for size, kinds in zip(spy.sizes, spy.kinds, strict=True) if size == 2]
    assert both.count({"verify"}) > 20
    alone = sum(size == 1 and kinds == {"verify"} for size, kinds in zip(spy.sizes, spy.kinds, strict=True))
    assert alone <= both.count({"verify"}) / 4


def test_a_stream_that_nobody_reads_stays_a_little_ahead(engine: Engine) -> None:
    alone = engine.generate([1, 2, 3], LONG).token_ids
    stream = engine.stream([1, 2, 3], LONG)
    found = list(next(stream).token_ids)
    [member] = engine._batch._members
    for _ in range(4):
        engine.generate([4, 5], LONG)
    assert READ_AHEAD <= member._told - member._taken <= READ_AHEAD + 4
    found += [token for chunk in stream for token in chunk.token_ids]
    assert found == alone


def test_a_request_that_leaves_waits_for_its_pass(engine: Engine, spy: Spy) -> None:
    streams = [engine.stream(prompt, LONG) for prompt in ([1, 2, 3], [4, 5])]
    for stream in streams:
        next(stream)
    spy.may_run.clear()
    before = len(spy.sizes)
    with ThreadPoolExecutor(2) as pool:
        rest = pool.submit(list, streams[0])
        until(lambda: bool(engine._batch._in_pass))
        left = pool.submit(streams[1].close)  # type: ignore[attr-defined]
        time.sleep(0.05)
        assert not left.done() or len(spy.sizes) == before
        spy.may_run.set()
        left.result()
        rest.result()
    assert waiting(engine) == 0
    assert engine.generate([4, 5], LONG).finish_reason == "length"


@pytest.mark.parametrize("failure", [RuntimeError("the engine fails"), MemoryError("no room")])
def test_what_fails_in_a_pass_ends_the_requests_of_that_pass_only(engine: Engine, spy: Spy, failure: Exception) -> None:
    alone = engine.generate([4, 5], LONG).token_ids
    spy.fails = lambda passes: failure if any(wanted.kind == "prefill" and set(wanted.trunk) == {7} for _, wanted in passes) else None
    with ThreadPoolExecutor(2) as pool:
        good, bad = pool.submit(engine.generate, [4, 5], LONG), pool.submit(engine.generate, [7, 7, 7], LONG)
        with pytest.raises(type(failure), match=str(failure)):
            bad.result()
        assert good.result().token_ids == alone
    assert waiting(engine) == 0


def test_an_interrupted_caller_leaves_and_the_others_go_on(engine: Engine, spy: Spy) -> None:
    alone = engine.generate([4, 5], LONG).token_ids
    spy.may_run.clear()
    with ThreadPoolExecutor(2) as pool:
        spy.fails = lambda _: KeyboardInterrupt() if len(spy.sizes) == 20 else None
        running = [pool.submit(engine.generate, prompt, LONG) for prompt in ([4, 5], [4, 5])]
        until(lambda: waiting(engine) == 2)
        spy.sizes.clear()
        spy.may_run.set()
        results: list[list[int] | None] = []
        for one in running:
            try:
                results.append(one.result().token_ids)
            except KeyboardInterrupt:
                results.append(None)
    assert sorted(results, key=lambda found: found is None) == [alone, None]
    assert waiting(engine) == 0
    assert engine.generate([4, 5], LONG).token_ids == alone


def test_a_stream_that_is_collected_during_a_pass_ends(engine: Engine, spy: Spy) -> None:
    """A stream in a reference cycle is closed by the garbage collector, in whichever thread that runs."""
    alone = engine.generate([4, 5], LONG).token_ids

    def abandon() -> None:
        stream = engine.stream([1, 2, 3], LONG)
        next(stream)
        cycle: list[Any] = [stream]
        cycle.append(cycle)

    def collect(passes: Sequence[tuple[Slot, Pass]]) -> None:
        if len(passes) == 2:
            gc.collect()

    gc.disable()
    try:
        abandon()
        assert waiting(engine) == 1
        spy.fails = collect
        assert engine.generate([4, 5], LONG).token_ids == alone
    finally:
        gc.enable()
    assert waiting(engine) == 0
    assert sorted(slot.place for slot in [engine.backend.acquire(0) for _ in range(4)]) == [0, 1, 2, 3]


def test_a_request_moves_to_the_place_of_one_that_left(engine: Engine) -> None:
    prompts = [[1, 2, 3], [4, 5], [6], [2, 2, 2, 2]]
    alone = [engine.generate(prompt, LONG).token_ids for prompt in prompts]
    streams = [engine.stream(prompt, LONG) for prompt in prompts]
    found = [list(next(stream).token_ids) for stream in streams]
    for stream in streams[:2]:
        stream.close()  # type: ignore[attr-defined]
    with ThreadPoolExecutor(2) as pool:
        rest = list(pool.map(lambda stream: [token for chunk in stream for token in chunk.token_ids], streams[2:]))
        assert not engine._batch._members
    assert [one + more for one, more in zip(found[2:], rest, strict=True)] == alone[2:]


def test_moved_requests_are_in_the_lowest_places(engine: Engine) -> None:
    streams = [engine.stream(prompt, LONG) for prompt in ([1, 2, 3], [4, 5], [6])]
    for stream in streams:
        next(stream)
    members = list(engine._batch._members)
    assert [member.slot.place for member in members] == [0, 1, 2]
    streams[0].close()  # type: ignore[attr-defined]
    next(streams[1])
    next(streams[1])
    assert sorted(member.slot.place for member in members[1:]) == [0, 1]
    for stream in streams[1:]:
        stream.close()  # type: ignore[attr-defined]
    assert sorted(engine.backend.acquire(0).place for _ in range(4)) == [0, 1, 2, 3]


def test_a_paused_stream_s_time_is_not_counted(engine: Engine) -> None:
    stream = engine.stream([1, 2, 3], LONG)
    next(stream)
    for _ in range(4):
        engine.generate([4, 5], LONG)
    time.sleep(0.3)
    engine.generate([4, 5], LONG)
    last = list(stream)[-1]
    assert last.stats is not None
    assert last.stats.decode_s < 0.3


def test_time_that_a_reader_takes_is_not_counted(engine: Engine) -> None:
    stream = engine.stream([1, 2, 3], dataclasses.replace(LONG, max_new_tokens=12))
    stats = None
    for chunk in stream:
        time.sleep(0.05)
        stats = chunk.stats
    assert stats is not None
    assert 0 < stats.decode_s + stats.prefill_s < 0.05


@dataclasses.dataclass(frozen=True)
class Job:
    """One request of a random load."""

    prompt: tuple[int, ...]
    config: GenerationConfig
    reads: int | None
    """Chunks after which the stream is closed; None for all."""
    delay: float


def job(seed: int) -> Job:
    """Returns a random request; a seed always gives the same one."""
    draw = random.Random(seed)
    mode = draw.choice(["plain", "speculative", "ngram", "auto"])
    config = GenerationConfig(
        max_new_tokens=draw.randint(1, 60),
        temperature=draw.choice([0.0, 0.7, 1.3]),
        top_p=draw.choice([0.8, 1.0]),
        seed=seed,
        mode=mode,
        exit=draw.choice(["fixed", "optimal", "confidence"]) if mode == "speculative" else None,
        ignore_eos=draw.random() < 0.5,
        stop=["b"] if draw.random() < 0.3 else [],
    )
    prompt = tuple(draw.randrange(1, 24) for _ in range(draw.choice([1, 3, 30, 200])))
    return Job(prompt, config, draw.choice([None, None, None, 1, 3]), draw.random() * 0.01)


def decoded(engine: Engine, one: Job) -> tuple[list[int], str, dict[int, bytes]]:
    """Returns the tokens, the text and the digests of the logits of a request, as far as it is read."""
    trace = Trace(logits={})
    stream = engine.stream(one.prompt, one.config, trace=trace)
    tokens, text = [], ""
    with contextlib.closing(stream):  # type: ignore[type-var]
        for number, chunk in enumerate(stream):
            tokens += chunk.token_ids
            text += chunk.text
            if one.reads is not None and number + 1 == one.reads:
                break
    assert trace.logits is not None
    known = len(one.prompt) + len(tokens)
    return tokens, text, {position: digest for position, digest in trace.logits.items() if position < known}


def agree(found: tuple[list[int], str, dict[int, bytes]], alone: tuple[list[int], str, dict[int, bytes]]) -> bool:
    """Returns whether a request, read in other chunks perhaps, begins like the same request alone."""
    tokens = min(len(found[0]), len(alone[0]))
    both = found[2].keys() & alone[2].keys()
    return (
        found[0][:tokens] == alone[0][:tokens]
        and (found[1].startswith(alone[1]) or alone[1].startswith(found[1]))
        and all(found[2][position] == alone[2][position] for position in both)
    )


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 4))
def test_any_mix_of_requests_gives_each_what_it_gets_alone(small: Engine, seed: int, count: int, threads: int) -> None:
    check_mix(small, seed, count, threads)


@pytest.fixture(scope="module")
def small(open_script: OpenScript) -> Engine:
    return open_script(SCRIPT, max_context=300, max_sequences=4)


def check_mix(engine: Engine, seed: int, count: int, threads: int) -> None:
    """Decodes random requests one by one, and then together, and compares tokens, texts and logits."""
    jobs = [job(seed + number) for number in range(count)]
    alone = [decoded(engine, one) for one in jobs]

    def run(one: Job) -> tuple[list[int], str, dict[int, bytes]]:
        time.sleep(one.delay)
        return decoded(engine, one)

    with ThreadPoolExecutor(threads) as pool:
        together = list(pool.map(run, jobs))
    assert all(agree(found, expected) for found, expected in zip(together, alone, strict=True))
    assert all(found[:2] == expected[:2] for found, expected, one in zip(together, alone, jobs, strict=True) if one.reads is None)
    assert waiting(engine) == 0


def test_real_engines_give_each_request_the_bits_that_it_has_alone(demo_artifact: Path) -> None:
    with load(demo_artifact, max_context=400, max_sequences=4) as engine:
        check_mix(engine, seed=5, count=16, threads=6)


def test_a_process_that_forks_while_requests_run_refuses_them_in_the_child(engine: Engine, spy: Spy) -> None:
    """The child must not wait for a lock or a thread that it does not have."""
    import multiprocessing

    context: Any = multiprocessing.get_context("fork")
    stream = engine.stream([1, 2, 3], LONG)
    next(stream)
    spy.may_run.clear()
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(engine.generate, [4, 5], LONG)
        until(lambda: engine._batch._driver is not None)
        spy.may_run.set()
        child = context.Process(target=_read_in_child, args=(stream,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        rest.result()


class HeldTrace(Trace):
    """A trace that holds up the sequence that writes to it, once `holds` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.holds, self.is_held, self.may_go_on = threading.Event(), threading.Event(), threading.Event()

    def add_logits(self, position: int, rows: Any) -> None:
        """Waits."""
        if self.holds.is_set():
            self.is_held.set()
            assert self.may_go_on.wait(60)


def test_a_fork_in_the_middle_of_another_thread_s_commit(engine: Engine) -> None:
    """In the child, the generator of the sequence seems to run for ever."""
    import multiprocessing

    context: Any = multiprocessing.get_context("fork")
    trace = HeldTrace()
    stream = engine.stream([1, 2, 3], LONG, trace=trace)
    next(stream)
    trace.holds.set()
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(engine.generate, [4, 5], LONG)
        assert trace.is_held.wait(60)
        child = context.Process(target=_read_in_child, args=(stream,))
        child.start()
        child.join(60)
        trace.may_go_on.set()
        assert child.exitcode == 0
        rest.result()


def _read_in_child(stream: Iterator[Any]) -> None:
    from ssruntime import BackendUnavailableError

    with contextlib.suppress(BackendUnavailableError):
        for _ in stream:
            pass
