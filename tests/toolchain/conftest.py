"""Fixtures of the export tests: a tiny checkpoint, its artifact and verify graph, and how to run a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from sstool.checkpoint.describe import describe_checkpoint
from sstool.checkpoint.rope import ropes
from sstool.graph.build import build_decoder
from sstool.graph.lower import lower_verify, plan_lowering
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.skip_set import SkipSpec
from tests.graph_feeds import first_pass
from tests.toolchain.tiny_llama import copy_of, make_llama

SKIP = SkipSpec(attention=(0, 2), mlp=(1, 2, 3))
CONTEXT = 64

RunGraph = Callable[..., dict[str, NDArray[Any]]]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied checkpoint of four layers with grouped-query attention. Read only: change `tiny_copy`."""
    return make_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny_copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, for one test to change."""
    return copy_of(tiny_model, tmp_path / "model")


@pytest.fixture(scope="session")
def tiny_artifact(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, exported with `SKIP`. Read only."""
    out = tmp_path_factory.mktemp("tiny-artifact") / "tiny"
    return export_artifact(ExportRequest(model=tiny_model, out=out, skip=SKIP)).folder


@pytest.fixture(scope="session")
def verify_graph(tiny_model: Path) -> ir.Model:
    """The tiny checkpoint's verify graph. Read only: clone it to change it."""
    return lower_verify(build_decoder(tiny_model), plan_lowering(describe_checkpoint(tiny_model)))


@pytest.fixture(scope="session")
def run_graph(tiny_model: Path) -> RunGraph:
    """Returns a function that runs a contract graph once over `ids` from position 0.

    That function returns the graph's outputs by name.
    """
    rope = ropes(describe_checkpoint(tiny_model).config)

    def run(model: ir.Model, ids: Sequence[int], positions: Sequence[int] | None = None) -> dict[str, NDArray[Any]]:
        session = open_graph(model)
        feeds = first_pass(session, ids, CONTEXT, rope, positions)
        names = [v.name for v in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    return run


def open_graph(
    model: ir.Model, *, level: Any = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, save_to: Path | None = None
) -> ort.InferenceSession:
    """Returns a session for a graph that contains its weights."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
