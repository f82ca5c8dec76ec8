"""Products become MatMulNBits, whose numbers are those of the codes, the scales and the zero points."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from sstool.graph.passes.block_products import FP32_ACTIVATIONS, BlockMatrix, BlockProductsPass, lazy_codes, unpacked
from sstool.graph.products import product_groups, products_of
from tests.toolchain.passes.small_graphs import constant, drawn, floats, kinds, model_of, named, run, within

DEPTH, WIDTH = 80, 24


def weights(*, transposed: bool = False) -> ir.Model:
    """Returns a model of one product whose matrix is not used elsewhere."""
    x = floats("x", "batch", "rows", DEPTH)
    matrix = drawn(DEPTH, WIDTH)
    weight = constant("weight", matrix.T.copy() if transposed else matrix)
    path = within("model", "layers.0", "mlp", "proj")
    if transposed:
        node = ir.node("FusedMatMul", [x, weight], attributes={"transB": 1}, domain="com.microsoft", name="product", metadata_props=path)
    else:
        node = ir.node("MatMul", [x, weight], name="product", metadata_props=path)
    return model_of([x], [named(node, "y").outputs[0]], [node], weight)


def parts(block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Returns codes [blocks * block, columns], and scales and zero points [blocks, columns]."""
    random, blocks = np.random.default_rng(block), -(-DEPTH // block)
    codes = random.integers(0, 16, (blocks * block, WIDTH)).astype(np.uint8)
    scales = (random.uniform(0.01, 0.1, (blocks, WIDTH)) * random.choice([-1, 1], (blocks, WIDTH))).astype(np.float32)
    return codes, scales, random.integers(0, 16, (blocks, WIDTH)).astype(np.uint8)


def quantized(model: ir.Model, block: int, *, accuracy_level: int = FP32_ACTIVATIONS) -> ir.Model:
    codes, scales, zeros = parts(block)
    (product,) = products_of(product_groups(model.graph))
    matrix = BlockMatrix(lazy_codes(product, block, lambda: codes), scales, zeros, block)
    return BlockProductsPass({"product": matrix}, accuracy_level=accuracy_level)(model).model


def expected(x: NDArray[np.float32], block: int) -> NDArray[np.float64]:
    codes, scales, zeros = (values.astype(np.float64) for values in parts(block))
    matrix = (codes - zeros.repeat(block, 0)) * scales.repeat(block, 0)
    return x @ matrix[:DEPTH]


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_result_is_that_of_the_restored_matrix(block: int, transposed: bool) -> None:
    x = drawn(2, 5, DEPTH)
    np.testing.assert_allclose(run(quantized(weights(transposed=transposed), block), x=x)["y"], expected(x, block), rtol=1e-4, atol=1e-4)


def test_activations_of_8_bits_are_close() -> None:
    x = drawn(1, 9, DEPTH)
    found = run(quantized(weights(), 32, accuracy_level=4), x=x)["y"]
    exact = expected(x, 32)
    assert 0 < np.abs(found - exact).max() < 0.02 * np.abs(exact).max()


def test_codes_scales_and_zero_points_can_be_read_back() -> None:
    (node,) = quantized(weights(), 32).graph
    codes, scales, zeros = parts(32)
    found = unpacked(node)
    np.testing.assert_array_equal(found[0].reshape(WIDTH, -1), codes.T)
    np.testing.assert_array_equal(found[1], scales.T)
    np.testing.assert_array_equal(found[2], zeros.T)


def test_the_matrix_is_gone_and_the_node_stays_where_it_was() -> None:
    done = quantized(weights(), 32)
    assert kinds(done) == {"MatMulNBits": 1}
    assert set(done.graph.initializers) == {"product.int4", "product.scales", "product.zeros"}
    (node,) = done.graph
    assert node.metadata_props == within("model", "layers.0", "mlp", "proj")


def test_other_products_stay_as_they_are() -> None:
    model = weights()
    assert kinds(BlockProductsPass({})(model).model) == {"MatMul": 1}
