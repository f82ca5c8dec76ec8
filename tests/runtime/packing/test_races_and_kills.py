"""Two processes that pack at the same time both succeed, and a killed one does not stop the next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from ssruntime.engine import load
from tests.runtime.packing.entries import DAMAGE, WITNESS, artifacts, entries, entry_of, only_entry, opened, run_child

BUILD_TOGETHER: Final = """
import sys
from pathlib import Path
import onnxruntime as ort
from ssruntime.artifact import read_artifact
from ssruntime.backends.ort.packing import OPTIMIZATION_LEVEL, open_packed

def options():
    print("building", flush=True)
    sys.stdin.readline()
    made = ort.SessionOptions()
    made.graph_optimization_level = OPTIMIZATION_LEVEL
    return made

entry, word = open_packed(read_artifact(Path(sys.argv[1])), verify=False, options=options)
print(word, entry.folder.name, flush=True)
"""

STOP_AFTER: Final = """
import sys
import ssruntime
from ssruntime.backends.ort import packing

step = getattr(packing, sys.argv[2])
def stop(*args):
    step(*args)
    print("stopped", flush=True)
    sys.stdin.read()
setattr(packing, sys.argv[2], stop)
ssruntime.load(sys.argv[1], threads=1)
"""

STOP_IN_EVICTION: Final = """
import shutil, sys
from pathlib import Path
from ssruntime.artifact import read_artifact
from ssruntime.backends.ort import packing

def stop(folder, ignore_errors):
    next(iter(folder.iterdir())).unlink()
    print("stopped", flush=True)
    sys.stdin.read()

shutil.rmtree = stop
packing.discard(read_artifact(Path(sys.argv[1])))
"""

KILL_OFTEN: Final = """
import os, random, signal, sys, time
from pathlib import Path
import onnxruntime as ort
from ssruntime.artifact import read_artifact
from ssruntime.backends.ort.packing import OPTIMIZATION_LEVEL, discard, open_packed

artifact = read_artifact(Path(sys.argv[1]))

def options():
    made = ort.SessionOptions()
    made.graph_optimization_level = OPTIMIZATION_LEVEL
    made.intra_op_num_threads = made.inter_op_num_threads = 1
    return made

def start():
    child = os.fork()
    if child == 0:
        open_packed(artifact, verify=False, options=options)
        os._exit(0)
    return child

begun = time.perf_counter()
os.waitpid(start(), 0)
whole = time.perf_counter() - begun
moments = random.Random(1)
for _ in range(50):
    if moments.random() < 0.7:
        discard(artifact)
    child = start()
    time.sleep(moments.uniform(0, whole))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
discard(artifact)
print("done")
"""


def start_child(program: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.mark.parametrize("together", [True, False])
def test_two_processes_that_build_at_once_both_succeed(cache: Path, artifact: Path, together: bool) -> None:
    first, second = children = [start_child(BUILD_TOGETHER, artifact) for _ in range(2)]
    try:
        assert [line_of(c) for c in children] == ["building", "building"]
        assert len(list(cache.glob(".pack.*"))) == 2
        for child in children if together else [first]:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        ends = [line_of(first)]
        (cache / ends[0].removeprefix("shared ") / WITNESS).touch()
        ends.append(second.communicate(None if together else "\n", timeout=60)[0].strip())
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert ends == [f"shared {only_entry(cache).name}"] * 2
    assert (only_entry(cache) / WITNESS).exists()  # the second took the first's
    assert opened(artifact, verify=True) == "shared"


@pytest.mark.parametrize("step", ["_prepare_root", "_pack", "sync_tree", "_evict"])
def test_a_kill_while_packing_stops_nobody(cache: Path, artifact: Path, step: str) -> None:
    opened(artifact)
    DAMAGE["data cut"](only_entry(cache))  # so that the child has something to put out of the way
    with start_child(STOP_AFTER, artifact, step) as child:
        try:
            assert line_of(child) == "stopped"
        finally:
            child.kill()
    assert opened(artifact) == "shared"
    assert only_entry(cache)


def test_kills_at_random_moments_leave_nothing(cache: Path, artifact: Path) -> None:
    assert run_child(KILL_OFTEN, artifact).stdout == "done\n"
    assert entries(cache) == []
    assert opened(artifact) == "shared"
    assert opened(artifact, verify=True) == "shared"
    assert only_entry(cache)


def test_a_kill_while_evicting_another_entry_leaves_nothing(cache: Path, artifact: Path, tmp_path: Path) -> None:
    opened(artifact)
    with start_child(STOP_IN_EVICTION, artifact) as child:
        try:
            assert line_of(child) == "stopped"
        finally:
            child.kill()
    (debris,) = cache.iterdir()
    assert debris.name.startswith(".pack.")
    (other,) = artifacts(tmp_path, 1)
    load(other, threads=1).close()
    assert only_entry(cache) == entry_of(cache, other)
