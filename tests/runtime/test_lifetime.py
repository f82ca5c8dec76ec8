"""Engines let go of their memory, and end cleanly in forked and in ending processes."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssruntime import BackendUnavailableError, GenerationConfig, load
from ssruntime.backends.ort import slot as slot_module
from ssruntime.backends.ort.backend import OrtBackend
from tests.kv_content import kv_content
from tests.runtime.scripted import random_script, write_artifact

CONTEXT = 64
LONG = GenerationConfig(max_new_tokens=30, ignore_eos=True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("lifetime") / "artifact", random_script(3, history=True), max_context=CONTEXT)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Turns the garbage collector off: only reference counts free objects then."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def python(code: str, *args: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Returns the result of a Python program of its own process."""
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.usefixtures("no_collector")
def test_no_reference_cycle_keeps_an_engine_alive(artifact: Path) -> None:
    engine = load(artifact, threads=1)
    engine.generate([1], LONG)
    assert isinstance(engine.backend, OrtBackend)
    assert engine.backend._slots is not None
    parts = [weakref.ref(part) for part in (engine, engine.backend, engine.backend._slots.target.verify)]
    del engine
    assert [part() for part in parts] == [None, None, None]


@pytest.mark.usefixtures("no_collector")
def test_a_closed_engine_lets_go_of_its_sessions_and_of_slots_that_are_released_later(artifact: Path) -> None:
    engine = load(artifact, threads=1)
    assert isinstance(engine.backend, OrtBackend)
    assert engine.backend._slots is not None
    session = weakref.ref(engine.backend._slots.target.verify)
    stream = engine.stream([1], LONG)
    tokens = [*next(stream).token_ids]
    slots = list(engine.backend._slots.made)
    assert len(slots) == 1
    slot = weakref.ref(slots.pop())
    engine.close()
    assert session() is not None  # the stream still runs
    tokens += [token for chunk in stream for token in chunk.token_ids]
    assert len(tokens) == 30
    del stream
    assert (session(), slot()) == (None, None)
    for use in (lambda: engine.generate([1]), lambda: engine.backend.acquire(0), lambda: engine.backend.new_slot(8)):  # type: ignore[attr-defined]
        with pytest.raises(BackendUnavailableError, match="closed"):
            use()


def test_a_long_sequence_gives_its_memory_back_and_the_next_one_is_the_same(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = []
    monkeypatch.setattr(slot_module, "RESERVE", 0)
    with load(artifact, threads=1, max_sequences=1) as engine:
        first = engine.generate([1, 2, 3], LONG)
        slot = engine.backend.acquire(0)
        assert not any(buffer.any() for buffer in kv_content(slot).values())  # type: ignore[arg-type]
        given_back.append(slot)
        engine.backend.release(slot)
        assert engine.generate([1, 2, 3], LONG).token_ids == first.token_ids


def test_a_short_sequence_leaves_its_memory_in_place(artifact: Path) -> None:
    with load(artifact, threads=1, max_sequences=1) as engine:
        engine.generate([1, 2, 3], LONG)
        slot = engine.backend.acquire(0)
        assert any(buffer.any() for buffer in kv_content(slot).values())  # type: ignore[arg-type]
        engine.backend.release(slot)


LOADS = """
import sys
import ssruntime

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

sizes = []
for _ in range(24):
    with ssruntime.load(sys.argv[1], threads=2) as engine:
        engine.generate([1], ssruntime.GenerationConfig(max_new_tokens=8))
    sizes.append(resident())
print(max(sizes[-4:]) - max(sizes[:4]))
"""


def test_loads_and_closes_keep_memory_flat(artifact: Path) -> None:
    done = python(LOADS, artifact)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * 2**20


ENDING = """
import sys, threading, time
import ssruntime

engine = ssruntime.load(sys.argv[1], threads=2)
begun = threading.Event()

def endless():
    while True:
        for chunk in engine.stream([1], ssruntime.GenerationConfig(max_new_tokens=50, ignore_eos=True)):
            begun.set()

threading.Thread(target=endless, daemon=True).start()
begun.wait()
"""


def test_a_process_ends_cleanly_while_a_daemon_thread_generates(artifact: Path) -> None:
    for _ in range(5):
        done = python(ENDING, artifact)
        assert (done.returncode, done.stderr) == (0, "")


FORKING = """
import os, sys
import ssruntime

engine = ssruntime.load(sys.argv[1], threads=int(sys.argv[2]))
config = ssruntime.GenerationConfig(max_new_tokens=20, ignore_eos=True)
expected = engine.generate([1], config).token_ids
stream = engine.stream([1], config)
next(stream)
child = os.fork()
if child == 0:
    refused = 0
    for use in (lambda: engine.generate([1], config), lambda: next(stream), lambda: next(engine.stream([1], config))):
        try:
            use()
        except ssruntime.BackendUnavailableError as err:
            refused += "forked" in str(err)
    engine.close()
    with ssruntime.load(sys.argv[1], threads=int(sys.argv[2])) as own:
        same = own.generate([1], config).token_ids == expected
    sys.exit(0 if refused == 3 and same else 9)
_, status = os.waitpid(child, 0)
rest = [token for chunk in stream for token in chunk.token_ids]
print(os.waitstatus_to_exitcode(status), rest == expected[1:] or rest == expected[-len(rest):])
"""


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_forked_process_refuses_inherited_engines_and_can_load_its_own(artifact: Path, threads: int) -> None:
    done = python(FORKING, artifact, str(threads))
    assert done.stdout == "0 True\n", done.stderr
