"""The backend checks positions, gives equal logits at any query length, and shares threads only if asked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import pytest

from ssruntime import GenerationConfig, graph_io
from ssruntime.backends.base import PREFILL_CHUNK
from ssruntime.backends.ort.backend import OrtBackend
from ssruntime.backends.ort.slot import OrtSlot
from ssruntime.engine import load
from tests.kv_content import kv_content
from tests.runtime.conftest import OpenScript
from tests.runtime.scripted import random_script, write_artifact

SCRIPT: Final = random_script(8, vocab=24, history=True, agreement=0.6)
CONTEXT: Final = 32
GREEDY: Final = GenerationConfig(max_new_tokens=8, temperature=0.0, ignore_eos=True)

LOADS: Final = """
import json, logging, sys
import onnxruntime as ort
import ssruntime

config = ssruntime.GenerationConfig(max_new_tokens=8, temperature=0.0, ignore_eos=True)
log, reports = [], []
logging.getLogger().addHandler(type("Keep", (logging.Handler,), {"emit": lambda self, record: log.append(record.levelname)})())
logging.getLogger().setLevel(logging.INFO)

def host_session(per_session):
    options = ort.SessionOptions()
    options.use_per_session_threads = per_session
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(f"{sys.argv[1]}/verify.onnx", options, providers=["CPUExecutionProvider"], enable_fallback=False)

for step in sys.argv[2:]:
    log.clear()
    if step == "host pool":
        ort.set_global_thread_pool_sizes(2, 1)
    elif step in ("host shared", "host own"):
        host_session(step == "host own")
    else:
        flag, _, threads = step.partition(" ")
        engine = ssruntime.load(sys.argv[1], threads=int(threads), global_threads=flag == "global")
        reports.append([engine.backend.packing, engine.backend.threads, engine.generate([1, 2], config).token_ids, list(log)])
print(json.dumps(reports))
"""


@pytest.fixture(scope="module")
def backend(open_script: OpenScript) -> Iterator[OrtBackend]:
    """A backend with room for two sequences of `CONTEXT` tokens."""
    with open_script(SCRIPT, max_context=CONTEXT, max_sequences=2) as engine:
        assert isinstance(engine.backend, OrtBackend)
        yield engine.backend


@pytest.fixture
def slot(backend: OrtBackend) -> Iterator[OrtSlot]:
    """A free slot."""
    slot = backend.acquire(0)
    yield slot
    backend.release(slot)


def cached(slot: OrtSlot) -> bytes:
    return b"".join(buffer.tobytes() for buffer in kv_content(slot).values())


# Passes

OUTSIDE: Final[dict[str, Callable[[OrtSlot], object]]] = {
    "verify past the end": lambda s: s.verify([1, 2], CONTEXT - 1),
    "verify after the end": lambda s: s.verify([1], CONTEXT),
    "verify before the start": lambda s: s.verify([1], -1),
    "verify nothing": lambda s: s.verify([], 3),
    "verify far beyond the end": lambda s: s.verify([1], 2**40),
    "draft after the end": lambda s: s.draft((1,), CONTEXT),
    "draft before the start": lambda s: s.draft((1,), -1),
    "forward past the end": lambda s: s.forward([1] * 20, CONTEXT - 19, (0,)),
    "forward before the start": lambda s: s.forward([1] * 20, -1, (0,)),
    "forward nothing": lambda s: s.forward([], 0, ()),
    "draft_forward past the end": lambda s: s.draft_forward([1] * (CONTEXT + 1), 0, (0,)),
    "prefill past the end": lambda s: s.prefill([1] * (CONTEXT + 1)),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_positions_outside_the_context_never_reach_the_kernels(slot: OrtSlot, name: str) -> None:
    slot.prefill([3] * CONTEXT)
    before, seconds = cached(slot), slot.engine_seconds
    with pytest.raises(ValueError, match=f"outside the context of {CONTEXT}"):
        OUTSIDE[name](slot)
    assert cached(slot) == before
    assert slot.engine_seconds == seconds


def test_the_last_position_can_be_used(slot: OrtSlot) -> None:
    ids = [i % SCRIPT.vocab for i in range(CONTEXT)]
    slot.prefill(ids[:-2])
    np.testing.assert_array_equal(slot.verify(ids[-2:], CONTEXT - 2).logits[-1], SCRIPT.target(ids))
    slot.draft(ids[-1:], CONTEXT - 1)
    np.testing.assert_array_equal(slot.forward(ids[-1:], CONTEXT - 1, (0,)).logits[0], SCRIPT.target(ids))


@pytest.mark.parametrize("query_length", range(1, graph_io.MAX_QUERY_LENGTH + 1))
def test_every_query_length_gives_the_logits_of_every_position(slot: OrtSlot, query_length: int) -> None:
    ids = [(7 * i) % SCRIPT.vocab for i in range(4 + query_length)]
    slot.prefill(ids[:4])
    expected = np.stack([SCRIPT.target(ids[: 5 + i]) for i in range(query_length)])
    unbound = slot.forward(ids[4:], 4, range(query_length))
    bound = slot.verify(ids[4:], 4)
    for output in (unbound, bound):
        assert output.logits.shape == (query_length, SCRIPT.vocab)
        np.testing.assert_array_equal(output.logits, expected)
        np.testing.assert_array_equal(output.tokens, expected.argmax(-1))
        probabilities = np.exp(expected - expected.max(-1, keepdims=True))
        np.testing.assert_allclose(output.confidence, (probabilities / probabilities.sum(-1, keepdims=True)).max(-1), rtol=1e-5)


def test_a_verify_pass_of_too_many_tokens_is_refused(slot: OrtSlot) -> None:
    with pytest.raises(ValueError, match="17 tokens is longer than the 16"):
        slot.verify([1] * (graph_io.MAX_QUERY_LENGTH + 1), 0)
    assert slot.verify([1] * graph_io.MAX_QUERY_LENGTH, 0).tokens.shape == (graph_io.MAX_QUERY_LENGTH,)


def test_logits_come_in_the_order_of_the_requested_positions(slot: OrtSlot) -> None:
    ids = [5, 3, 9, 1]
    output = slot.forward(ids, 0, (3, 0, 0))
    np.testing.assert_array_equal(output.logits, [SCRIPT.target(ids), SCRIPT.target(ids[:1]), SCRIPT.target(ids[:1])])


def test_a_prompt_may_be_longer_than_a_prefill_chunk(open_script: OpenScript) -> None:
    lengths = (PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK + 5)
    with open_script(SCRIPT, max_context=3 * PREFILL_CHUNK) as engine:
        slot = engine.backend.acquire(0)
        for length in lengths:
            ids = [(i * i) % SCRIPT.vocab for i in range(length)]
            np.testing.assert_array_equal(slot.prefill(ids).logits, [SCRIPT.target(ids)])
        engine.backend.release(slot)


# Slots


def test_a_slot_is_used_again_with_its_engine_time_at_zero(backend: OrtBackend) -> None:
    first = backend.acquire(0)
    first.prefill([1, 2])
    assert first.engine_seconds > 0
    backend.release(first)
    again = backend.acquire(0)
    assert again is first
    assert again.engine_seconds == 0
    backend.release(again)


def test_two_slots_share_no_kv_cache(backend: OrtBackend) -> None:
    first, second = backend.acquire(0), backend.acquire(0)
    assert first is not second
    first.prefill([1, 2, 3])
    before = cached(first)
    second.prefill([4, 5, 6, 7])
    assert cached(first) == before
    np.testing.assert_array_equal(first.verify([9], 3).logits[0], SCRIPT.target([1, 2, 3, 9]))
    backend.release(first)
    backend.release(second)


def test_packing_tells_whether_packed_weights_are_shared(open_script: OpenScript, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_script(SCRIPT).backend.packing == "shared"
    monkeypatch.setenv("SSTOOL_CACHE_DIR", "/proc/none")
    assert open_script(SCRIPT).backend.packing.startswith("private (")


# Threads


def reports_of(folder: Path, *steps: str) -> list[Any]:
    """Returns packing, threads, tokens and log levels of each load of the steps.

    The steps run in a process of their own, because a process-wide thread pool lasts as long as the process.
    """
    done = subprocess.run([sys.executable, "-c", LOADS, str(folder), *steps], capture_output=True, text=True, check=True, timeout=120)
    reports: list[Any] = json.loads(done.stdout)
    return reports


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scripted artifact."""
    return write_artifact(tmp_path_factory.mktemp("threads") / "artifact", SCRIPT)


@pytest.mark.parametrize(
    ("steps", "threads", "levels"),
    [
        (("own 1", "host own", "own 2"), [1, 2], [[], []]),
        (("global 2", "own 1", "host shared", "global 2"), [2, 2, 2], [[], ["INFO"], []]),
        (("own 1", "global 1", "global 2", "own 3"), [1, 1, 1, 1], [[], [], ["WARNING"], ["INFO"]]),
        (("host pool", "own 1", "global 1"), [1, 1], [["INFO"], ["WARNING"]]),
    ],
    ids=["never", "first", "later", "the host's"],
)
def test_every_load_uses_the_process_wide_pool_once_there_is_one(
    folder: Path, steps: tuple[str, ...], threads: list[int], levels: list[list[str]]
) -> None:
    reports = reports_of(folder, *steps)
    with load(folder, threads=1) as engine:
        expected = engine.generate([1, 2], GREEDY).token_ids
    assert [r[0] for r in reports] == ["shared"] * len(threads)
    assert [r[1] for r in reports] == threads
    assert [r[2] for r in reports] == [expected] * len(threads)
    assert [r[3] for r in reports] == levels


def test_a_load_without_the_flag_leaves_other_sessions_their_own_threads(folder: Path) -> None:
    load(folder, threads=1).close()
    session = ort.InferenceSession(str(folder / "verify.onnx"), providers=["CPUExecutionProvider"], enable_fallback=False)
    assert session.get_inputs()
