"""Embeddings are multiplied by the exact square root of the hidden size; other products do not change."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from sstool.graph.passes.embedding_scale import EmbeddingScalePass
from tests.toolchain.passes.small_graphs import constant, integers, model_of, named, random_constant, run

WIDTH = 7
ROOT = math.sqrt(WIDTH)


def model(factor: float, *, factor_first: bool = False, looked_up: bool = True) -> ir.Model:
    """Returns a model that multiplies by a number: rows looked up in a table, or the whole table."""
    ids, table, scale = integers("ids", 2), random_constant("table", 5, WIDTH), constant("scale", factor)
    rows = ir.node("Gather", [table, ids]) if looked_up else ir.node("Expand", [table, constant("shape", np.array([5, WIDTH]))])
    factors = [scale, rows.outputs[0]] if factor_first else [rows.outputs[0], scale]
    product = named(ir.node("Mul", factors), "y")
    used = [value for value in rows.inputs if value is not None and value.const_value is not None]
    return model_of([ids], product.outputs, [rows, product], *used, scale)


@pytest.mark.parametrize("factor_first", [False, True])
@pytest.mark.parametrize("rounded", [round(ROOT, 2), round(ROOT, 2) - 0.002])
def test_a_rounded_root_becomes_exact(rounded: float, factor_first: bool) -> None:
    given = model(rounded, factor_first=factor_first)
    ids = np.array([3, 1])
    rows = run(given, ids=ids)["y"] / np.float32(rounded)
    done = EmbeddingScalePass(WIDTH)(given)
    assert done.modified
    np.testing.assert_allclose(run(done.model, ids=ids)["y"], rows * ROOT, rtol=1e-6)


def test_two_lookups_share_one_root() -> None:
    given = model(round(ROOT, 2))
    rows, product = given.graph
    second = named(ir.node("Mul", [rows.outputs[0], product.inputs[1]]), "z")
    second.outputs[0].type = product.outputs[0].type
    given.graph.append(second)
    given.graph.outputs.append(second.outputs[0])
    done = EmbeddingScalePass(WIDTH)(given).model
    assert product.inputs[1] is second.inputs[1]
    found = run(done, ids=np.array([3, 1]))
    np.testing.assert_array_equal(found["y"], found["z"])


@pytest.mark.parametrize(("factor", "looked_up"), [(round(ROOT, 2) + 0.02, True), (1.0, True), (round(ROOT, 2), False)])
def test_other_products_do_not_change(factor: float, looked_up: bool) -> None:
    given = model(factor, looked_up=looked_up)
    done = EmbeddingScalePass(WIDTH)(given)
    assert not done.modified
    number = next(n for n in done.model.graph if n.op_type == "Mul").inputs[1]
    assert number is not None
    assert number.const_value is not None
    assert float(number.const_value.numpy()) == np.float32(factor)
