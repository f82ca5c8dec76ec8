"""Products become integer products whose sums are exact, whatever rows are beside them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from sstool.graph.passes.integer_products import LEVELS, IntegerMatrix, IntegerProductsPass
from sstool.graph.products import product_groups, products_of
from tests.processor import needs_exact_products
from tests.toolchain.passes.small_graphs import constant, drawn, floats, kinds, model_of, named, run, within

DEPTH, WIDTH = 48, 32


def weights(seed: int) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-LEVELS, LEVELS + 1, (DEPTH, WIDTH)).astype(np.int8)


def scales(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.001, 0.01, WIDTH).astype(np.float32)


def model(*, tied: bool = False) -> ir.Model:
    """Returns a model of two products of one input, the second perhaps with a transposed matrix."""
    x = floats("x", "batch", "rows", DEPTH)
    first = constant("first_weight", weights(0) * scales(0))
    second = constant("second_weight", (weights(1) * scales(1)).T if tied else weights(1) * scales(1))
    path = within("model", "layers.0", "mlp", "proj")
    nodes = [named(ir.node("MatMul", [x, first], name="first", metadata_props=path), "a")]
    if tied:
        fused = ir.node("FusedMatMul", [x, second], attributes={"transB": 1}, domain="com.microsoft", name="second", metadata_props=path)
    else:
        fused = ir.node("MatMul", [x, second], name="second", metadata_props=path)
    nodes.append(named(fused, "b"))
    return model_of([x], [node.outputs[0] for node in nodes], nodes, first, second)


def quantized(given: ir.Model, *names: str) -> ir.Model:
    seeds = {"first": 0, "second": 1}
    matrices = {name: IntegerMatrix(ir.tensor(weights(seeds[name])), scales(seeds[name])) for name in names or seeds}
    return IntegerProductsPass(matrices)(given).model


def expected(x: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """Returns the product with activations rounded row by row, and exact sums."""
    bound = np.abs(x).max(axis=-1, keepdims=True)
    integers = np.round((x / bound) / np.float32(1 / LEVELS)).astype(np.float64)
    return (integers @ weights(seed)) * (scales(seed) / LEVELS) * bound


@needs_exact_products
@pytest.mark.parametrize("tied", [False, True])
def test_the_result_is_the_exact_sum_of_integers(tied: bool) -> None:
    x = drawn(2, 5, DEPTH)
    found = run(quantized(model(tied=tied)), x=x)
    for name, seed in (("a", 0), ("b", 1)):
        np.testing.assert_allclose(found[name], expected(x, seed), rtol=1e-6, atol=1e-6)


def test_products_of_one_input_share_its_quantization() -> None:
    found = kinds(quantized(model()))
    assert found == {"Abs": 1, "ReduceMax": 1, "Div": 1, "QuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Mul": 2}


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 17])
def test_a_row_has_the_same_bits_beside_any_rows(rows: int) -> None:
    done = quantized(model())
    x = drawn(1, 17, DEPTH) * np.logspace(-3, 3, 17, dtype=np.float32)[:, None]
    whole = run(done, x=x)
    for start in range(0, 17, rows):
        part = run(done, x=x[:, start : start + rows])
        for name in ("a", "b"):
            np.testing.assert_array_equal(part[name], whole[name][:, start : start + rows])


def test_a_row_of_zeros_gives_zeros() -> None:
    x = drawn(1, 3, DEPTH)
    x[:, 1] = 0.0
    found = run(quantized(model()), x=x)["a"]
    assert (found[:, 1] == 0.0).all()
    assert np.isfinite(found).all()


def test_other_products_stay_as_they_are() -> None:
    done = quantized(model(), "first")
    assert kinds(done)["MatMul"] == 1
    assert "second_weight" in done.graph.initializers
    assert "first_weight" not in done.graph.initializers
    x = drawn(1, 4, DEPTH)
    np.testing.assert_array_equal(run(done, x=x)["b"], run(model(), x=x)["b"])


def test_new_nodes_belong_to_the_modules_of_what_they_compute() -> None:
    done = quantized(model())
    paths = {node.op_type: node.metadata_props for node in done.graph}
    assert paths["MatMulIntegerToFloat"] == paths["Mul"] == within("model", "layers.0", "mlp", "proj")
    assert paths["QuantizeLinear"] == {}  # the input is the graph's


def test_routers_are_no_products() -> None:
    x, weight = floats("x", "rows", DEPTH), constant("weight", weights(0) * scales(0))
    router = named(ir.node("MatMul", [x, weight], name="router", metadata_props=within("layers.0", "mlp", "gate")), "scores")
    chosen = named(ir.node("Softmax", router.outputs), "chosen")
    given = model_of([x], chosen.outputs, [router, chosen], weight)
    assert products_of(product_groups(given.graph)) == []
