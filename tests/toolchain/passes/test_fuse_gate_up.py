"""Two products of one input become one product with the same bits; other products are not changed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sstool.graph.passes.fuse_gate_up import FuseGateUpPass
from tests.toolchain.passes.small_graphs import drawn, floats, kinds, model_of, named, random_constant, run, within

HIDDEN, WIDE = 16, 40


def model(
    *,
    up_width: int = WIDE,
    up_input: str = "x",
    up_layer: int = 0,
    kind: str = "mlp",
    shared_weight: bool = False,
    third: bool = False,
    weight_is_input: bool = False,
) -> ir.Model:
    """Returns a model of two products, `gate` and `up`, and what the changes say."""
    values = {name: floats(name, "rows", HIDDEN) for name in ("x", "y")}
    gate_weight = random_constant("gate_weight", HIDDEN, WIDE)
    up_weight = gate_weight if shared_weight else random_constant("up_weight", HIDDEN, up_width, seed=1)
    if weight_is_input:
        up_weight = floats("up_weight", HIDDEN, up_width)
    products = [("gate", "x", gate_weight, 0), ("up", up_input, up_weight, up_layer)]
    weights = [gate_weight] if shared_weight or weight_is_input else [gate_weight, up_weight]
    if third:
        weights.append(random_constant("third_weight", HIDDEN, WIDE, seed=2))
        products.append(("third", "x", weights[-1], 0))
    nodes = [
        named(ir.node("MatMul", [values[x], w], name=name, metadata_props=within("model", f"layers.{layer}", kind, f"{name}_proj")), name)
        for name, x, w, layer in products
    ]
    inputs = [*values.values(), *([up_weight] if weight_is_input else [])]
    ends = [named(ir.node("Identity", [node.outputs[0]]), f"{node.name}.out") for node in nodes]
    return model_of(inputs, [node.outputs[0] for node in ends], [*nodes, *ends], *weights)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_one_product_computes_the_same_bits(rows: int) -> None:
    given = model()
    feeds = {"x": drawn(rows, HIDDEN), "y": drawn(rows, HIDDEN)}
    before = run(given, **feeds)
    done = FuseGateUpPass()(given)
    assert done.modified
    assert kinds(done.model) == {"MatMul": 1, "Split": 1, "Identity": 2}
    assert list(done.model.graph.initializers) == ["gate_weight.gate_up"]
    after = run(done.model, **feeds)
    for name in ("gate.out", "up.out"):
        np.testing.assert_array_equal(after[name], before[name])


def test_the_new_nodes_belong_to_the_mlp() -> None:
    done = FuseGateUpPass()(model()).model
    assert {str(node.metadata_props) for node in done.graph if node.op_type != "Identity"} == {
        str(within("model", "layers.0", "mlp", "gate_proj"))
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"up_width": WIDE + 8},
        {"up_input": "y"},
        {"up_layer": 1},
        {"kind": "self_attn"},
        {"shared_weight": True},
        {"third": True},
        {"weight_is_input": True},
    ],
)
def test_other_products_are_not_changed(changes: dict[str, object]) -> None:
    given = model(**changes)  # type: ignore[arg-type] # one of the keywords
    before = kinds(given)
    done = FuseGateUpPass()(given)
    assert not done.modified
    assert kinds(done.model) == before
