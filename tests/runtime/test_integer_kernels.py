"""The probe of integer kernels, and the refusal of artifacts that need more than the processor has."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ssruntime import load
from ssruntime.artifact import BRANCH_MARGIN
from ssruntime.backends.ort import integer_kernels
from ssruntime.backends.ort.integer_kernels import DEPTH, PROBE, is_exact, products_are_exact
from ssruntime.errors import ArtifactError, BackendUnavailableError
from tests.runtime.scripted import edit_manifest

INT16 = 2**15 - 1


def saturated(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the sums of a processor that adds pairs of products in 16 bits."""
    pairs = (x[:, :, None].astype(int) * weights.astype(int)).reshape(len(x), DEPTH // 2, 2, -1).sum(axis=2)
    return (np.clip(pairs, -INT16 - 1, INT16).sum(axis=1) - 128 * weights.astype(int).sum(axis=0)).astype(np.float32)


def test_the_probe_is_what_its_description_says() -> None:
    model = onnx.load(PROBE)
    onnx.checker.check_model(model)
    weights = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "weights")
    assert weights.shape == (DEPTH, 32)
    assert set(np.unique(weights)) == {-127, 127}
    assert [node.op_type for node in model.graph.node] == ["MatMulIntegerToFloat"]


def test_the_probe_tells_saturated_sums_from_exact_ones() -> None:
    weights = next(numpy_helper.to_array(t) for t in onnx.load(PROBE).graph.initializer if t.name == "weights")
    x = np.full((4, DEPTH), 255, dtype=np.uint8)
    assert is_exact(((x.astype(int) - 128) @ weights.astype(int)).astype(np.float32))
    assert not is_exact(saturated(x, weights))


def test_the_probe_gives_an_answer_here() -> None:
    assert products_are_exact() in (True, False)


def edited(folder: Path, **changes: object) -> Path:
    edit_manifest(folder, **changes)
    return folder


def test_an_artifact_for_vnni_is_refused_without_it(demo_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_kernels, "products_are_exact", lambda: False)
    with pytest.raises(BackendUnavailableError, match="needs a processor with VNNI or AMX") as caught:
        load(edited(demo_copy, instructions="vnni"))
    assert caught.value.hint == "export the model with --cpu any"


def test_an_artifact_for_any_processor_is_not(demo_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_kernels, "products_are_exact", lambda: False)
    with load(edited(demo_copy, instructions="any")) as engine:
        assert engine.settings().branch_margin == BRANCH_MARGIN


def test_unknown_instructions_are_refused(demo_copy: Path) -> None:
    with pytest.raises(ArtifactError, match="instructions"):
        load(edited(demo_copy, instructions="avx1024"))


def test_no_bound_is_known_for_branches_of_quantized_weights(demo_copy: Path) -> None:
    with load(edited(demo_copy, dtype="int8")) as engine:
        assert engine.settings().branch_margin == math.inf
