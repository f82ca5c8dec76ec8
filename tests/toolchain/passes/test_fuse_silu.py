"""`x * sigmoid(x)` becomes one kernel with the same result; other gates are not changed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sstool.graph.passes.fuse_silu import FuseSiluPass
from tests.toolchain.passes.small_graphs import drawn, floats, kinds, model_of, named, only_node, run, within


def model(*, sigmoid_first: bool = False, gate_of: str = "x", gate_has_use: bool = False) -> ir.Model:
    """Returns a model of `x * sigmoid(gate_of)`, with inputs `x` and `y`."""
    values = {name: floats(name, 2, 3) for name in ("x", "y")}
    sigmoid = named(ir.node("Sigmoid", [values[gate_of]]), "gate")
    factors = [values["x"], sigmoid.outputs[0]]
    product = ir.node("Mul", factors[::-1] if sigmoid_first else factors, name="product", metadata_props=within("layers.0", "mlp"))
    named(product, "out")
    nodes = [sigmoid, product]
    if gate_has_use:
        nodes.append(named(ir.node("Neg", sigmoid.outputs), "other"))
    return model_of(values.values(), [node.outputs[0] for node in nodes[1:]], nodes)


@pytest.mark.parametrize("sigmoid_first", [False, True])
def test_one_kernel_computes_the_same(sigmoid_first: bool) -> None:
    given = model(sigmoid_first=sigmoid_first)
    feeds = {"x": drawn(2, 3), "y": drawn(2, 3, seed=2)}
    before = run(given, **feeds)["out"]
    done = FuseSiluPass()(given)
    assert done.modified
    assert kinds(done.model) == {"QuickGelu": 1}
    np.testing.assert_allclose(run(done.model, **feeds)["out"], before, rtol=1e-6)


def test_the_kernel_belongs_to_the_module_of_the_product() -> None:
    fused = only_node(FuseSiluPass()(model()).model, "QuickGelu")
    assert fused.name == "product"
    assert fused.metadata_props == within("layers.0", "mlp")


@pytest.mark.parametrize("changes", [{"gate_of": "y"}, {"gate_has_use": True}])
def test_other_gates_are_not_changed(changes: dict[str, object]) -> None:
    given = model(**changes)  # type: ignore[arg-type] # one of the two keywords
    before = kinds(given)
    done = FuseSiluPass()(given)
    assert not done.modified
    assert kinds(done.model) == before
