"""Small constant arithmetic is computed at export; large matrices and computed values are left alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sstool.graph.passes.fold_constants import FoldConstantsPass
from tests.toolchain.passes.small_graphs import constant, drawn, floats, integers, kinds, model_of, named, random_constant, run

WIDTH = 6


def test_an_addition_to_a_norm_s_weight_is_folded() -> None:
    x, weight = floats("x", 2, WIDTH), random_constant("weight", WIDTH)
    one = ir.node("Constant", [], attributes={"value": ir.tensor(np.float32(1))})
    shifted = ir.node("Add", [weight, one.outputs[0]])
    product = named(ir.node("Mul", [x, shifted.outputs[0]]), "y")
    given = model_of([x], product.outputs, [one, shifted, product], weight)
    rows = drawn(2, WIDTH)
    before = run(given, x=rows)["y"]
    done = FoldConstantsPass()(given).model
    assert kinds(done) == {"Mul": 1}
    assert len(done.graph.initializers) == 1
    np.testing.assert_array_equal(run(done, x=rows)["y"], before)


def test_constant_nodes_become_initializers_and_unused_ones_are_removed() -> None:
    x = floats("x", 2, WIDTH)
    used = ir.node("Constant", [], attributes={"value": ir.tensor(np.full(WIDTH, 3, dtype=np.float32))})
    unused = ir.node("Constant", [], attributes={"value_int": 7})
    total = named(ir.node("Add", [x, used.outputs[0]]), "y")
    done = FoldConstantsPass()(model_of([x], total.outputs, [used, unused, total])).model
    assert kinds(done) == {"Add": 1}
    (value,) = done.graph.initializers.values()
    assert value.const_value is not None
    np.testing.assert_array_equal(value.const_value.numpy(), np.full(WIDTH, 3, dtype=np.float32))
    rows = drawn(2, WIDTH)
    np.testing.assert_array_equal(run(done, x=rows)["y"], rows + 3)


@pytest.mark.parametrize("kind", ["scaled matrix", "tied head"])
def test_a_large_matrix_is_not_folded(kind: str) -> None:
    side = 400  # 160,000 numbers, above the limit
    x, matrix = floats("x", 1, side), random_constant("matrix", side, side)
    constants, inputs = [matrix], [x]
    if kind == "scaled matrix":
        constants.append(constant("scale", 2.0))
        nodes = [ir.node("Mul", constants)]
    else:  # the embedding is looked up too, so a transposed copy would be a second one
        inputs.append(integers("ids", 1))
        nodes = [ir.node("Transpose", [matrix], attributes={"perm": [1, 0]}), named(ir.node("Gather", [matrix, inputs[1]]), "rows")]
    nodes.append(named(ir.node("MatMul", [x, nodes[0].outputs[0]]), "y"))
    given = model_of(inputs, [node.outputs[0] for node in nodes[1:]], nodes, *constants)
    before = kinds(given)
    done = FoldConstantsPass()(given).model
    assert kinds(done) == before
    assert list(done.graph.initializers.values()) == constants


def test_values_that_depend_on_an_input_are_not_folded() -> None:
    x, scale = floats("x", 2, WIDTH), constant("scale", 2.0)
    product = named(ir.node("Mul", [x, scale]), "y")
    done = FoldConstantsPass()(model_of([x], product.outputs, [product], scale)).model
    assert list(done.graph) == [product]
    assert list(done.graph.initializers) == ["scale"]
