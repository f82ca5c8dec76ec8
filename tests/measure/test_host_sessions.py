"""Loading and decoding an artifact does not change other ONNX Runtime sessions of the process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.measure.conftest import Script, successor_table

MakeArtifact = Callable[[Script], Path]

PROGRAM = """
import sys
import numpy as np
import onnxruntime as ort
import ssruntime

folder, global_threads = sys.argv[1], sys.argv[2] == "yes"

def host(**options):
    wanted = ort.SessionOptions()
    for name, value in options.items():
        setattr(wanted, name, value)
    graph = open(folder + "/draft.onnx", "rb").read()
    return ort.InferenceSession(graph, wanted, providers=["CPUExecutionProvider"])

def run(session):
    feeds = {
        "input_ids": np.arange(8, dtype=np.int64)[None],
        "logits_index": np.arange(8, dtype=np.int64)[None],
        "position_ids": np.arange(8, dtype=np.int64)[None],
        "past_length": np.zeros(1, dtype=np.int64),
        "tree_mask": np.zeros((1, 1, 8, 8), dtype=np.float32),
        "query_seqlens": np.array([8], dtype=np.int32),
        "seqlens_k": np.array([7], dtype=np.int32),
        "total_sequence_length": np.array(8, dtype=np.int32),
    }
    wanted = {i.name for i in session.get_inputs()}
    return session.run(["logits"], {k: v for k, v in feeds.items() if k in wanted})[0]

if global_threads:
    first = None  # a session created before the global pool keeps its own threads, so none is created here
else:
    first = host()
    before = run(first)
with ssruntime.load(folder, threads=2, global_threads=global_threads) as engine:
    engine.generate("t1", ssruntime.GenerationConfig(max_new_tokens=20, temperature=0.0))
    if first is not None:
        assert np.array_equal(run(first), before)
        assert np.array_equal(run(host()), before)
    try:
        host(use_per_session_threads=False)  # works only if the process has a global pool
    except Exception:
        found = "no global pool"
    else:
        found = "global pool"
if first is not None:
    assert np.array_equal(run(first), before)
print(found)
"""


@pytest.mark.parametrize(("asked", "found"), [("no", "no global pool"), ("yes", "global pool")])
def test_the_process_gets_a_global_thread_pool_only_if_asked(make_artifact: MakeArtifact, asked: str, found: str) -> None:
    folder = make_artifact(Script(verify=successor_table(), draft=successor_table()))
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder), asked], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == found
