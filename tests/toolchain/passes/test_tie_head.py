"""A product with a transposed constant uses the matrix itself; a tied LM head uses the embedding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from sstool.graph.passes.tie_head import TieHeadPass
from tests.toolchain.passes.small_graphs import (
    constant,
    drawn,
    floats,
    integers,
    kinds,
    model_of,
    named,
    only_node,
    random_constant,
    run,
    within,
)

WIDTH, VOCAB = 6, 11
FEEDS = {"x": drawn(2, WIDTH), "ids": np.array([4, 0])}


def model(matrix: ir.Value, *, transpose: bool = False, table: ir.Value | None = None) -> ir.Model:
    """Returns a model that looks up rows of a table and multiplies `x` by a matrix or its transpose."""
    table = random_constant("table", VOCAB, WIDTH) if table is None else table
    x, ids = floats("x", 2, WIDTH), integers("ids", 2)
    nodes = [named(ir.node("Gather", [table, ids]), "rows")]
    factor = matrix
    if transpose:
        nodes.append(ir.node("Transpose", [matrix], attributes={"perm": [1, 0]}))
        factor = nodes[-1].outputs[0]
    nodes.append(ir.node("MatMul", [x, factor], name="head", metadata_props=within("lm_head")))
    outputs = [nodes[0].outputs[0], named(nodes[-1], "logits").outputs[0]]
    return model_of([x, ids], outputs, nodes, *{table, matrix})


@pytest.mark.parametrize("tied", [False, True])
def test_a_matrix_that_the_graph_transposes_is_used_directly(tied: bool) -> None:
    matrix = random_constant("head", VOCAB, WIDTH, seed=3)
    given = model(matrix, transpose=True, table=matrix if tied else None)
    before = run(given, **FEEDS)
    done = TieHeadPass()(given)
    assert done.modified
    assert kinds(done.model) == {"Gather": 1, "FusedMatMul": 1}
    assert only_node(done.model, "FusedMatMul").inputs[1] is matrix
    for name, expected in before.items():
        np.testing.assert_allclose(run(done.model, **FEEDS)[name], expected, rtol=1e-5, atol=1e-6)


def test_a_transposed_copy_of_the_table_is_removed() -> None:
    table = random_constant("table", VOCAB, WIDTH)
    assert table.const_value is not None
    copy = constant("copy", table.const_value.numpy().T.copy())
    given = model(copy, table=table)
    before = run(given, **FEEDS)
    done = TieHeadPass()(given)
    assert done.modified
    head = only_node(done.model, "FusedMatMul")
    assert head.inputs[1] is table
    assert (head.name, head.metadata_props) == ("head", within("lm_head"))
    assert list(done.model.graph.initializers) == ["table"]
    for name, expected in before.items():
        np.testing.assert_allclose(run(done.model, **FEEDS)[name], expected, rtol=1e-5, atol=1e-6)


def nearly_transposed(table: NDArray[np.float32]) -> NDArray[np.float32]:
    numbers = table.T.copy()
    numbers[2, 3] += 1e-6
    return numbers


@pytest.mark.parametrize("change", [nearly_transposed, lambda table: -table.T, lambda table: table.T[:, :4]])
def test_products_with_other_matrices_do_not_change(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
    table = random_constant("table", VOCAB, WIDTH)
    assert table.const_value is not None
    matrix = constant("matrix", change(table.const_value.numpy()))
    given = model(matrix, table=table)
    assert not TieHeadPass()(given).modified
    assert only_node(given, "MatMul").inputs[1] is matrix


def test_a_product_of_computed_values_does_not_change() -> None:
    x = floats("x", 3, 3)
    transposed = ir.node("Transpose", [x], attributes={"perm": [1, 0]})
    product = named(ir.node("MatMul", [x, transposed.outputs[0]]), "y")
    given = model_of([x], product.outputs, [transposed, product])
    assert not TieHeadPass()(given).modified
    assert kinds(given) == {"Transpose": 1, "MatMul": 1}
