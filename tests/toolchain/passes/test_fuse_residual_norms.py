"""A fused residual add that takes over another norm computes the same; other norms are not changed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from sstool.graph.passes.fuse_residual_norms import FuseResidualNormsPass

WIDTH = 8
EPSILON = 1e-5


def weight(name: str, seed: int) -> ir.Value:
    return ir.Value(name=name, const_value=ir.tensor(np.random.default_rng(seed).standard_normal(WIDTH, dtype=np.float32), name=name))


def graph(add_weights: list[ir.Value | None], norms: list[list[ir.Value]], *, epsilon: float = EPSILON, uses_own: bool = False) -> ir.Model:
    """A SkipLayerNormalization whose sum feeds some LayerNormalizations."""
    row = ir.TensorType(ir.DataType.FLOAT)
    streams = [ir.Value(name=name, type=row, shape=ir.Shape([1, 3, WIDTH])) for name in ("stream", "branch")]
    add = ir.node(
        "SkipLayerNormalization", [*streams, *add_weights], attributes={"epsilon": EPSILON}, domain="com.microsoft", num_outputs=4
    )
    nodes, outputs = [add], []
    for n, weights in enumerate(norms):
        norm = ir.node("LayerNormalization", [add.outputs[3], *weights], attributes={"epsilon": epsilon, "axis": -1})
        out = ir.node("Neg", [norm.outputs[0]])
        out.outputs[0].name = f"out{n}"
        nodes += [norm, out]
        outputs += [out.outputs[0]]
    outputs += [add.outputs[0]] if uses_own else []
    for value in outputs:
        value.type, value.shape = row, ir.Shape([1, 3, WIDTH])
    named = [w for w in [*add_weights, *(w for weights in norms for w in weights)] if w is not None]
    made = ir.Graph(streams, outputs, nodes=nodes, initializers=named, opset_imports={"": 21, "com.microsoft": 1}, name="norms")
    return ir.Model(made, ir_version=10)


def run(model: ir.Model) -> list[NDArray[np.float32]]:
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    outputs: list[NDArray[np.float32]] = session.run(
        None, {name: rng.standard_normal((1, 3, WIDTH), dtype=np.float32) for name in ("stream", "branch")}
    )
    return outputs


def count(model: ir.Model, kind: str) -> int:
    return sum(node.op_type == kind for node in model.graph)


@pytest.mark.parametrize("add", ["scale", "scale and bias", "scale, bias and the branch's bias", "scale and the branch's bias"])
@pytest.mark.parametrize("norm", ["scale", "scale and bias"])
def test_a_residual_add_computes_the_norm_that_it_took_over(add: str, norm: str) -> None:
    own = [weight("gamma", 1)]
    if "bias and" in add or add.endswith("and bias"):
        own.append(weight("beta", 2))
    add_weights: list[ir.Value | None] = [*own]
    if "branch" in add:
        add_weights += [None] * (2 - len(own)) + [weight("bias", 3)]
    model = graph(add_weights, [[weight("scale", 4), *([weight("shift", 5)] if "bias" in norm else [])]])
    before = run(model)
    changed = FuseResidualNormsPass()(model).modified
    # A residual add without an input for the norm's bias does not take it over.
    assert changed is not (add == "scale" and norm == "scale and bias")
    assert count(model, "LayerNormalization") == (0 if changed else 1)
    np.testing.assert_allclose(run(model)[0], before[0], rtol=1e-5, atol=1e-6)
    assert all(value.uses() for value in model.graph.initializers.values()) or not changed


def test_of_two_norms_one_is_taken_over() -> None:
    model = graph([weight("gamma", 1), weight("beta", 2)], [[weight("a", 3), weight("b", 4)], [weight("c", 5), weight("d", 6)]])
    before = run(model)
    assert FuseResidualNormsPass()(model).modified
    assert count(model, "LayerNormalization") == 1
    for was, now in zip(before, run(model), strict=True):
        np.testing.assert_allclose(now, was, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unsuited", [{"epsilon": 1e-6}, {"uses_own": True}])
def test_other_norms_are_not_changed(unsuited: dict[str, float | bool]) -> None:
    model = graph([weight("gamma", 1), weight("beta", 2)], [[weight("a", 3), weight("b", 4)]], **unsuited)  # type: ignore[arg-type]
    assert not FuseResidualNormsPass()(model).modified
    assert count(model, "LayerNormalization") == 1
