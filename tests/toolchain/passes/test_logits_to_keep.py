"""Only the requested positions reach the LM head, and their logits do not change."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ssruntime.errors import UnsupportedModelError
from sstool.graph.passes.logits_to_keep import LogitsToKeepPass
from tests.toolchain.passes.small_graphs import constant, drawn, floats, kinds, model_of, named, random_constant, run, typed

WIDTH, VOCAB = 6, 11


def head(kind: str = "MatMul") -> tuple[list[ir.Value], list[ir.Node], list[ir.Value]]:
    """Returns the inputs, the final norm and the head's matrix product, and their constants."""
    x = floats("hidden", 1, "sequence", WIDTH)
    norm = ir.node("RMSNormalization", [x, random_constant("norm", WIDTH)], attributes={"axis": -1, "epsilon": 1e-6})
    typed(norm.outputs[0], ir.DataType.FLOAT, [1, "sequence", WIDTH])
    if kind == "MatMul":
        product = ir.node("MatMul", [norm.outputs[0], random_constant("head", WIDTH, VOCAB, seed=2)])
    else:
        matrix = random_constant("head", VOCAB, WIDTH, seed=2)
        product = ir.node("FusedMatMul", [norm.outputs[0], matrix], attributes={"transB": 1}, domain="com.microsoft")
    constants = [value for node in (norm, product) for value in node.inputs if value is not None and value.const_value is not None]
    return [x], [norm, product], constants


def logits_of(nodes: list[ir.Node]) -> ir.Value:
    named(nodes[-1], "logits")
    return typed(nodes[-1].outputs[0], ir.DataType.FLOAT, [1, "sequence", VOCAB])


@pytest.mark.parametrize("kind", ["MatMul", "FusedMatMul"])
@pytest.mark.parametrize("capped", [False, True])
def test_the_logits_of_requested_positions_do_not_change(kind: str, capped: bool) -> None:
    inputs, nodes, constants = head(kind)
    if capped:
        constants.append(constant("cap", 30.0))
        nodes.append(ir.node("Div", [nodes[-1].outputs[0], constants[-1]]))
        nodes.append(ir.node("Tanh", nodes[-1].outputs))
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], constants[-1]]))
    given = model_of(inputs, [logits_of(nodes)], nodes, *constants)
    rows = drawn(1, 5, WIDTH)
    every = run(given, hidden=rows)["logits"]
    done = LogitsToKeepPass()(given)
    assert done.modified
    chosen = [4, 0, 0]
    kept = run(done.model, hidden=rows, logits_index=np.array([chosen]))["logits"]
    np.testing.assert_allclose(kept, every[:, chosen], rtol=1e-6, atol=1e-6)


def test_the_gather_comes_after_the_norm() -> None:
    inputs, nodes, constants = head()
    done = LogitsToKeepPass()(model_of(inputs, [logits_of(nodes)], nodes, *constants)).model
    assert [node.op_type for node in done.graph] == ["RMSNormalization", "Unsqueeze", "GatherND", "MatMul"]
    index = done.graph.inputs[-1]
    assert (index.name, index.dtype, index.shape) == ("logits_index", ir.DataType.INT64, ir.Shape(["batch", "num_logits"]))
    assert done.graph.outputs[0].shape == ir.Shape(["batch", "num_logits", VOCAB])


@pytest.mark.parametrize("shape", ["two products", "no product", "no logits"])
def test_a_head_that_is_not_one_product_is_refused(shape: str) -> None:
    inputs, nodes, constants = head()
    if shape == "two products":
        constants.append(random_constant("other", WIDTH, VOCAB, seed=3))
        nodes.append(ir.node("MatMul", [nodes[0].outputs[0], constants[-1]]))
        nodes.append(ir.node("Add", [nodes[1].outputs[0], nodes[2].outputs[0]]))
    elif shape == "no product":
        del nodes[1:]
    logits = logits_of(nodes)
    if shape == "no logits":
        logits.name = "scores"
    given = model_of(inputs, [logits], nodes, *constants)
    before = kinds(given)
    with pytest.raises(UnsupportedModelError, match="LM head is not one matrix product"):
        LogitsToKeepPass().call(given)
    assert kinds(given) == before
