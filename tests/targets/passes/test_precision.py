"""A graph computes in 16 bits up to its logits; what is computed from these stays in fp32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from sstool.graph.passes.top_k_outputs import TopKOutputsPass
from sstool.targets.passes.precision import PrecisionPass, rounded
from tests.toolchain.passes.small_graphs import constant, drawn, floats, kinds, model_of, named, run, typed

HALF, BRAIN = ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def model() -> ir.Model:
    x, cache = floats("x", "batch", "num_logits", 6), floats("past.0.key", 1, 1, 4, 6)
    weight, factor = constant("weight", 1e5 * drawn(6, 10, seed=2)), constant("factor", np.float32(0.25))
    cast = named(ir.node("Cast", [x], attributes={"to": int(ir.DataType.FLOAT)}), "cast")
    scaled = named(ir.node("Mul", [cast.outputs[0], factor]), "scaled")
    product = named(ir.node("MatMul", [scaled.outputs[0], weight], name="head"), "logits")
    for node in (cast, scaled):
        typed(node.outputs[0], ir.DataType.FLOAT, ["batch", "num_logits", 6])
    typed(product.outputs[0], ir.DataType.FLOAT, ["batch", "num_logits", 10])
    kept = named(ir.node("Identity", [cache]), "present.0.key")
    given = model_of([x, cache], [*product.outputs, *kept.outputs], [cast, scaled, product, kept], weight, factor)
    return TopKOutputsPass()(given).model


def types(graph: ir.Graph) -> dict[str, ir.DataType]:
    return {value.name or "": value.dtype for value in [*graph.inputs, *graph.outputs] if value.dtype is not None}


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_everything_before_the_logits_changes(dtype: ir.DataType) -> None:
    done = PrecisionPass(dtype)(model())
    assert done.modified
    found = types(done.model.graph)
    assert {name for name, kind in found.items() if kind == dtype} == {"x", "past.0.key", "present.0.key"}
    assert {found[name] for name in ("logits", "top_logits", "confidence")} == {ir.DataType.FLOAT}
    assert {found[name] for name in ("token", "top_tokens")} == {ir.DataType.INT64}
    assert kinds(done.model)["Cast"] == 2
    first, last = (node for node in done.model.graph if node.op_type == "Cast")
    assert (first.attributes["to"].as_int(), last.attributes["to"].as_int()) == (int(dtype), int(ir.DataType.FLOAT))
    assert done.model.graph.initializers["weight"].const_value.dtype == dtype  # type: ignore[union-attr]


def test_the_logits_are_those_of_rounded_numbers() -> None:
    given, x = model(), 1e-4 * drawn(1, 2, 6)
    weight = given.graph.initializers["weight"].const_value.numpy()  # type: ignore[union-attr]
    done = PrecisionPass(HALF)(given).model
    feeds = {"x": x.astype(np.float16), "past.0.key": np.zeros((1, 1, 4, 6), dtype=np.float16)}
    found = run(done, **feeds)
    expected = (x.astype(np.float16).astype(np.float64) * 0.25) @ np.clip(weight, -65504, 65504).astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(found["logits"], expected, atol=2e-2 * np.abs(expected).max())
    assert found["logits"].dtype == np.float32
    np.testing.assert_array_equal(found["token"], found["logits"].argmax(-1))


def test_numbers_beyond_fp16_become_its_largest() -> None:
    given = np.array([1e9, -1e9, 0.1, 65504], dtype=np.float32)
    assert rounded(given, HALF).tolist() == [65504, -65504, np.float16(0.1), 65504]
    np.testing.assert_array_equal(rounded(given, BRAIN), given.astype(ml_dtypes.bfloat16))
