"""Scales move from activations into weights, and the result stays the same up to rounding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sstool.graph.channel_scaling import scaling_place
from sstool.graph.passes.scale_channels import ScaleChannelsPass
from sstool.graph.products import product_groups
from tests.toolchain.conftest import RunGraph
from tests.toolchain.passes.small_graphs import constant, drawn, floats, model_of, named, random_constant, run, within

IDS = (5, 17, 3, 88, 42, 6, 9, 11)
DEPTH, WIDTH = 16, 24


def factors(model: ir.Model) -> dict[str, np.ndarray]:
    """Returns random factors, from 1/8 to 8, for every input whose channels can be scaled."""
    random = np.random.default_rng(4)
    groups = [group for group in product_groups(model.graph) if scaling_place(group) is not None]
    return {group.name: np.exp2(random.uniform(-3, 3, group.products[0].shape[0])).astype(np.float32) for group in groups}


def test_a_model_s_logits_stay_the_same(verify_graph: ir.Model, run_graph: RunGraph) -> None:
    given = verify_graph.clone()
    found = factors(given)
    assert len(found) == 3 * 4  # of each layer: attention and MLP after a norm, and the gated product
    before = run_graph(verify_graph, IDS)["logits"]
    after = run_graph(ScaleChannelsPass(found)(given).model, IDS)["logits"]
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    assert (after != before).any()


def test_changed_weights_have_new_names(verify_graph: ir.Model) -> None:
    done = ScaleChannelsPass(factors(verify_graph))(verify_graph.clone()).model
    for name, value in done.graph.initializers.items():
        if not name.endswith(".scaled"):
            assert value.const_value is verify_graph.graph.initializers[name].const_value
    assert sum(name.endswith(".scaled") for name in done.graph.initializers) > 12


def graph_of(kind: str) -> ir.Model:
    """Returns a product whose input is computed in the way that `kind` says."""
    x, weight = floats("x", "rows", DEPTH), random_constant("weight", DEPTH, WIDTH)
    gamma, beta, up = constant("gamma", drawn(DEPTH)), constant("beta", drawn(DEPTH, seed=3)), random_constant("up", DEPTH, DEPTH, seed=2)
    path = within("model", "layers.0", "mlp", "down_proj")
    before: list[ir.Node] = []
    if kind == "layer norm":
        before = [ir.node("LayerNormalization", [x, gamma, beta], attributes={"axis": -1})]
    elif kind == "used elsewhere":
        before = [ir.node("RMSNormalization", [x, gamma], attributes={"axis": -1})]
    elif kind == "product":
        before = [ir.node("MatMul", [x, up], name="up", metadata_props=within("model", "layers.0", "mlp", "up_proj")), ir.node("Tanh", [x])]
        before.append(ir.node("Mul", [before[1].outputs[0], before[0].outputs[0]]))
    elif kind == "activation":
        before = [ir.node("Gelu", [x])]
    for number, node in enumerate(before):
        named(node, f"v{number}")
    down = named(ir.node("MatMul", [before[-1].outputs[0] if before else x, weight], name="down", metadata_props=path), "y")
    nodes, ends = [*before, down], [down.outputs[0]]
    if kind == "used elsewhere":
        nodes.append(named(ir.node("Neg", [before[-1].outputs[0]]), "z"))
        ends.append(nodes[-1].outputs[0])
    used = [v for v in (weight, gamma, beta, up) if v.uses()]
    return model_of([x], ends, nodes, *used)


@pytest.mark.parametrize("kind", ["layer norm", "product"])
def test_channels_of_norms_and_of_gated_products_can_be_scaled(kind: str) -> None:
    given, x = graph_of(kind), drawn(5, DEPTH)
    before = run(given, x=x)["y"]
    names = {group.name for group in product_groups(given.graph)}
    factor = np.exp2(np.random.default_rng(0).uniform(-3, 3, DEPTH)).astype(np.float32)
    assert "down" in names
    done = ScaleChannelsPass({"down": factor})(given).model
    np.testing.assert_allclose(run(done, x=x)["y"], before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["activation", "used elsewhere", "input"])
def test_other_inputs_cannot_be_scaled(kind: str) -> None:
    groups = {group.name: group for group in product_groups(graph_of(kind).graph)}
    assert scaling_place(groups["down"]) is None
