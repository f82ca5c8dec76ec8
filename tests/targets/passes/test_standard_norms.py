"""Fused residual adds become an Add and a norm with the same results."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sstool.targets.passes.standard_norms import StandardNormsPass
from tests.toolchain.passes.small_graphs import constant, drawn, floats, kinds, model_of, named, run, typed

WIDTH = 8


def past() -> ir.Value:
    """A KV-cache input, from which passes read the model's data type."""
    return floats("past.0.key", 1, 1, 4, WIDTH)


def model(kind: str, *, has_bias: bool, uses_sum: bool) -> ir.Model:
    x, branch, cache = floats("x", 1, 2, WIDTH), floats("branch", 1, 2, WIDTH), past()
    weights = [constant("scale", drawn(WIDTH, seed=3))]
    if kind == "SkipLayerNormalization":
        weights.append(constant("shift", drawn(WIDTH, seed=4)))
    bias = constant("bias", drawn(WIDTH, seed=5))
    node = ir.node(
        kind,
        [x, branch, *weights, *([bias] if has_bias else [])],
        attributes={"epsilon": 1e-5},
        domain="com.microsoft",
        num_outputs=4,
        name="residual",
    )
    named(node, "normed", "", "", "total")
    outputs = [typed(node.outputs[0], ir.DataType.FLOAT, [1, 2, WIDTH])]
    if uses_sum:
        outputs.append(typed(node.outputs[3], ir.DataType.FLOAT, [1, 2, WIDTH]))
    kept = ir.node("Identity", [cache], name="kept")
    named(kept, "present.0.key")
    return model_of([x, branch, cache], [*outputs, *kept.outputs], [node, kept], *weights, *([bias] if has_bias else []))


FEEDS = {"x": drawn(1, 2, WIDTH), "branch": drawn(1, 2, WIDTH, seed=2), "past.0.key": drawn(1, 1, 4, WIDTH)}


@pytest.mark.parametrize("uses_sum", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("kind", "norm"), [("SkipSimplifiedLayerNormalization", "RMSNormalization"), ("SkipLayerNormalization", "LayerNormalization")]
)
def test_a_fused_residual_add_is_split(kind: str, norm: str, has_bias: bool, uses_sum: bool) -> None:
    given = model(kind, has_bias=has_bias, uses_sum=uses_sum)
    before = run(given, **FEEDS)
    done = StandardNormsPass()(given)
    assert done.modified
    assert kinds(done.model) == {"Add": 1 + has_bias, norm: 1, "Identity": 1}
    after = run(done.model, **FEEDS)
    assert after.keys() == before.keys()
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)


def test_a_norm_of_onnx_runtime_becomes_standard() -> None:
    x, scale, cache = floats("x", 1, 2, WIDTH), constant("scale", drawn(WIDTH, seed=3)), past()
    node = named(ir.node("SimplifiedLayerNormalization", [x, scale], attributes={"epsilon": 1e-5, "axis": -1}, name="norm"), "y")
    kept = named(ir.node("Identity", [cache], name="kept"), "present.0.key")
    given = model_of([x, cache], [*node.outputs, *kept.outputs], [node, kept], scale)
    before = run(given, x=FEEDS["x"], **{"past.0.key": FEEDS["past.0.key"]})["y"]
    done = StandardNormsPass()(given).model
    assert kinds(done) == {"RMSNormalization": 1, "Identity": 1}
    np.testing.assert_allclose(run(done, x=FEEDS["x"], **{"past.0.key": FEEDS["past.0.key"]})["y"], before, rtol=1e-5, atol=1e-6)


def test_a_graph_without_such_norms_is_not_changed() -> None:
    cache = past()
    kept = named(ir.node("Identity", [cache]), "present.0.key")
    assert not StandardNormsPass()(model_of([cache], kept.outputs, [kept])).modified
