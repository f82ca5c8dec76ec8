"""An engine serves many threads; each request has a KV cache to itself and always gives it back."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ssruntime
from ssruntime import BackendUnavailableError, Completion, ConfigError, GenerationConfig, PromptError
from ssruntime.engine import Engine, load
from tests.runtime.conftest import OpenScript
from tests.runtime.scripted import Script, random_script, write_artifact

SCRIPT = random_script(21, vocab=24, history=True, agreement=0.8)
LONG = GenerationConfig(max_new_tokens=40, ignore_eos=True, temperature=0.0, exit="fixed", max_draft=3)


@pytest.fixture
def single_slot_engine(open_script: OpenScript) -> Iterator[Engine]:
    """An engine with one KV cache."""
    with open_script(SCRIPT, max_sequences=1) as engine:
        yield engine


def test_concurrent_requests_give_the_same_results_as_sequential_ones(open_script: OpenScript) -> None:
    engine = open_script(SCRIPT, max_sequences=3)
    jobs = [
        (
            [1 + i % 5, i % 7],
            GenerationConfig(max_new_tokens=50, ignore_eos=True, seed=i, temperature=i % 3 * 0.6, sampling=sampling, deterministic=True),
        )
        for i in range(12)
        for sampling in ("coupled", "rejection")
    ]
    alone = [engine.generate(prompt, config) for prompt, config in jobs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: engine.generate(*job), jobs))

    def results(completions: list[Completion]) -> list[tuple[list[int], str, int, int]]:
        return [(c.token_ids, c.text, c.stats.accepted, c.stats.rounds) for c in completions]

    assert results(together) == results(alone)


def test_interleaved_streams_are_independent(open_script: OpenScript) -> None:
    engine = open_script(SCRIPT, max_sequences=2)
    prompts = ([1, 2, 3], [3, 2])
    alone = [engine.generate(p, LONG).token_ids for p in prompts]
    streams = [engine.stream(p, LONG) for p in prompts]
    found: list[list[int]] = [[], []]
    running = [0, 1]
    while running:
        for i in list(running):
            chunk = next(streams[i], None)
            if chunk is None:
                running.remove(i)
            else:
                found[i] += chunk.token_ids
    assert found == alone


def test_a_reused_kv_cache_does_not_change_the_text(single_slot_engine: Engine) -> None:
    first = single_slot_engine.generate([1, 2, 3], LONG).token_ids
    single_slot_engine.generate([5] * 50, GenerationConfig(max_new_tokens=14, ignore_eos=True))
    assert single_slot_engine.generate([1, 2, 3], LONG).token_ids == first


def test_closing_a_stream_early_frees_its_kv_cache(single_slot_engine: Engine) -> None:
    for chunks in range(4):
        stream = single_slot_engine.stream([1], LONG)
        for _ in range(chunks):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert single_slot_engine.generate([1], LONG, timeout=5).finish_reason == "length"


def test_a_dropped_or_finished_stream_frees_its_kv_cache(single_slot_engine: Engine) -> None:
    stream = single_slot_engine.stream([1], LONG)
    next(stream)
    del stream
    list(single_slot_engine.stream([1], LONG, timeout=5))
    assert single_slot_engine.generate([1], LONG, timeout=5).token_ids


def test_a_failed_request_frees_its_kv_cache(single_slot_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDiskError(Exception):
        pass

    def refuse(_self: object, _tokens: object) -> str:
        raise FullDiskError

    with monkeypatch.context() as patch:
        patch.setattr("ssruntime.text.output.OutputText.take", refuse)
        with pytest.raises(FullDiskError):
            single_slot_engine.generate([1], LONG)
        with pytest.raises(FullDiskError):
            list(single_slot_engine.stream([1], LONG, timeout=5))
    assert single_slot_engine.generate([1], LONG, timeout=5).token_ids


def test_a_stream_that_was_not_started_holds_no_kv_cache(single_slot_engine: Engine) -> None:
    streams = [single_slot_engine.stream([1], LONG) for _ in range(3)]
    assert len([list(s) for s in streams]) == 3


def test_a_request_fails_if_no_kv_cache_is_free_in_time(single_slot_engine: Engine) -> None:
    stream = single_slot_engine.stream([1], LONG)
    next(stream)
    for timeout in (0, 0.02):
        with pytest.raises(BackendUnavailableError, match=r"all 1 sequences .* busy for 0") as caught:
            single_slot_engine.generate([1], LONG, timeout=timeout)
        assert "max_sequences" in caught.value.hint
        with pytest.raises(BackendUnavailableError):
            next(iter(single_slot_engine.stream([1], LONG, timeout=timeout)))
    assert list(stream)
    assert single_slot_engine.generate([1], LONG, timeout=5).token_ids


@pytest.mark.parametrize("mode", ["plain", "speculative"])
def test_a_deadline_that_passed_before_the_first_token_leaves_an_empty_completion(single_slot_engine: Engine, mode: str) -> None:
    config = GenerationConfig(mode=mode, temperature=0.0, max_new_tokens=20, ignore_eos=True)
    completion = single_slot_engine.generate([1], config, timeout=0)
    assert (completion.token_ids, completion.text, completion.finish_reason) == ([], "", "timeout")
    [chunk] = single_slot_engine.stream([1], config, timeout=0)
    assert (chunk.token_ids, chunk.finish_reason) == ((), "timeout")
    assert single_slot_engine.generate([1], config).finish_reason == "length"


@pytest.mark.parametrize("mode", ["plain", "speculative"])
def test_a_deadline_that_passes_while_decoding_keeps_the_tokens_so_far(
    single_slot_engine: Engine, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    config = GenerationConfig(mode=mode, temperature=0.0, max_new_tokens=20, ignore_eos=True)
    whole = single_slot_engine.generate([1], config)
    now = 100.0
    with monkeypatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now)
        stream = single_slot_engine.stream([1], config, timeout=30)
        chunks = [next(stream), next(stream)]
        now += 31
        chunks += stream
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    assert chunks[-1].finish_reason == "timeout"
    assert chunks[-1].stats is not None
    assert 1 <= len(tokens) < 20
    assert tokens == whole.token_ids[: len(tokens)]
    assert "".join(chunk.text for chunk in chunks) == whole.text[: sum(len(chunk.text) for chunk in chunks)]


def test_a_waiting_request_runs_when_a_kv_cache_is_freed(single_slot_engine: Engine) -> None:
    stream = single_slot_engine.stream([1], LONG)
    next(stream)
    started = threading.Event()

    def wait() -> Completion:
        started.set()
        return single_slot_engine.generate([1], LONG, timeout=60)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(wait)
        started.wait()
        rest = list(stream)
        assert future.result().token_ids[-1] == rest[-1].token_ids[-1]


def test_a_closed_engine_refuses_requests_and_lets_running_ones_finish(open_script: OpenScript) -> None:
    engine = open_script(SCRIPT)
    expected = engine.generate([1], LONG).token_ids
    running, waiting = engine.stream([1], LONG), engine.stream([1], LONG)
    tokens = list(next(running).token_ids)
    engine.close()
    engine.close()
    for refused in (lambda: engine.generate([1], LONG), lambda: next(waiting)):
        with pytest.raises(BackendUnavailableError, match="closed"):
            refused()
    tokens += [t for chunk in running for t in chunk.token_ids]
    assert tokens == expected


def test_a_wrong_prompt_is_refused_before_the_first_chunk(single_slot_engine: Engine) -> None:
    for prompt in ([], "", [99], ["a"], 7, None):
        with pytest.raises(PromptError):
            single_slot_engine.stream(prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("threads", v) for v in (0, -1, 1025, 1.5, "2", True)),
        *(("max_context", v) for v in (0, -1, 65, True)),
        *(("max_sequences", v) for v in (0, -1, True)),
    ],
)
def test_load_settings_out_of_range_are_refused(tmp_path: Path, setting: str, value: object) -> None:
    folder = write_artifact(tmp_path / "artifact", SCRIPT, max_context=64)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    message = f"{setting} is out of range: {value!r}" if is_number else f"{setting} must be a whole number, found {value!r}"
    with pytest.raises(ConfigError, match=message):
        load(folder, **{setting: value})  # type: ignore[arg-type]


def test_max_context_is_at_most_4096_unless_it_is_given(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "artifact", SCRIPT, max_context=10_000)
    with load(folder, threads=1) as engine:
        assert engine.backend.max_context == 4096
    with load(folder, threads=1, max_context=7) as engine:
        completion = engine.generate([1, 2], LONG)
        assert (len(completion.token_ids), completion.finish_reason) == (5, "context")
    with load(folder, threads=1, max_context=10_000) as engine:
        assert engine.backend.max_context == 10_000


def test_without_a_draft_only_plain_mode_is_available(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "with", SCRIPT)
    bare = write_artifact(tmp_path / "without", Script(verify=SCRIPT.verify, history=True))
    with load(folder, threads=1) as engine:
        expected = engine.generate([1], LONG).token_ids
        assert engine.settings().mode == "auto"
    for engine in (load(folder, threads=1, draft=False), load(bare, threads=1)):
        with engine:
            assert engine.settings().mode == "plain"
            completion = engine.generate([1], LONG)
            assert (completion.token_ids, completion.stats.rounds) == (expected, 0)
            with pytest.raises(ConfigError, match="needs a draft"):
                engine.generate([1], GenerationConfig(mode="speculative"))


def test_a_warning_names_unsupported_checkpoint_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_artifact(
        tmp_path / "artifact", SCRIPT, generation={"eos_token_id": 0, "repetition_penalty": 1.1, "num_beams": 1, "penalty_alpha": 0.6}
    )
    with caplog.at_level(logging.WARNING), load(folder, threads=1):
        pass
    (record,) = caplog.records
    assert record.getMessage().endswith("ignored: penalty_alpha, repetition_penalty")


def test_an_engine_loaded_from_the_package_generates_and_streams_text(tmp_path: Path) -> None:
    engine = ssruntime.load(write_artifact(tmp_path / "artifact", SCRIPT), threads=1)
    completion = engine.generate("abc", GenerationConfig(max_new_tokens=5, ignore_eos=True))
    assert completion.prompt_tokens == 3
    assert completion.text == "".join(c.text for c in engine.stream("abc", GenerationConfig(max_new_tokens=5, ignore_eos=True)))


def test_only_a_missing_onnx_runtime_is_reported_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = write_artifact(tmp_path / "artifact", SCRIPT)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(BackendUnavailableError, match=r"onnxruntime cannot be imported") as caught:
            load(artifact)
        assert "sstool[cpu]" in caught.value.hint
    monkeypatch.setitem(sys.modules, "ssruntime.backends.ort.target", None)
    with pytest.raises(ModuleNotFoundError, match=r"ssruntime\.backends\.ort\.target"):
        load(artifact)
