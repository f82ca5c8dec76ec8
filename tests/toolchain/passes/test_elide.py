"""Any set of sublayers can be skipped; the draft computes what the checkpoint computes without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssruntime.artifact import SkipSet
from ssruntime.errors import UnsupportedModelError
from sstool.graph.lower import lower_draft
from sstool.graph.passes.elide import ElidePass, sublayers_of
from sstool.graph.sublayers import Sublayer, branch_of, is_residual_add, sublayer_of, sublayer_of_path
from sstool.validation.reference import reference_logits
from tests.toolchain.conftest import RunGraph
from tests.toolchain.passes.small_graphs import drawn, floats, model_of, named, random_constant, run, within
from tests.toolchain.tiny_llama import LAYERS, VOCAB

IDS = [int(i) for i in np.random.default_rng(9).integers(0, VOCAB, 20)]
ALL = tuple(range(LAYERS))

SHAPES = {
    "attention-only": SkipSet(attention=(1, 3)),
    "mlp-only": SkipSet(mlp=(0, 2)),
    "one-whole-layer": SkipSet(attention=(2,), mlp=(2,)),
    "first-layer": SkipSet(attention=(0,), mlp=(0,)),
    "last-layer": SkipSet(attention=(3,), mlp=(3,)),
    "adjacent-layers": SkipSet(attention=(1, 2), mlp=(1, 2)),
    "mlp-then-next-attention": SkipSet(attention=(2,), mlp=(1,)),
    "every-attention": SkipSet(attention=ALL),
    "every-mlp": SkipSet(mlp=ALL),
    "all-but-one": SkipSet(attention=ALL, mlp=(0, 1, 2)),
}


def assert_draft_parity(verify: ir.Model, folder: Path, skip: SkipSet, run_graph: RunGraph) -> None:
    draft = lower_draft(verify, skip)
    ours = run_graph(draft, IDS)
    reference = reference_logits(folder, IDS, range(len(IDS)), skip=skip).logits
    assert np.abs(ours["logits"][0] - reference).max() <= 1e-5 * np.abs(reference).max()
    kept = {f"present.{n}.{kind}" for n in ALL if n not in skip.attention for kind in ("key", "value")}
    assert {name for name in ours if name.startswith("present.")} == kept
    assert {v.name for v in draft.graph.inputs if v.name and v.name.startswith("past.")} == {
        name.replace("present", "past") for name in kept
    }
    assert not {sublayer_of(node) for node in draft.graph} & sublayers_of(skip)
    assert set(draft.graph.initializers) <= set(verify.graph.initializers)


@pytest.mark.parametrize("name", SHAPES)
def test_a_draft_is_the_checkpoint_without_those_sublayers(
    name: str, verify_graph: ir.Model, tiny_model: Path, run_graph: RunGraph
) -> None:
    assert_draft_parity(verify_graph, tiny_model, SHAPES[name], run_graph)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attention=st.sets(st.sampled_from(ALL)), mlp=st.sets(st.sampled_from(ALL)))
def test_any_skip_set_gives_its_draft(
    attention: set[int], mlp: set[int], verify_graph: ir.Model, tiny_model: Path, run_graph: RunGraph
) -> None:
    skip = SkipSet(attention=tuple(sorted(attention)), mlp=tuple(sorted(mlp)))
    assert_draft_parity(verify_graph, tiny_model, skip, run_graph)


@pytest.mark.parametrize("name", SHAPES)
def test_a_residual_add_takes_over_the_norm_after_a_skipped_sublayer(name: str, verify_graph: ir.Model) -> None:
    draft = lower_draft(verify_graph, SHAPES[name])
    alone = [node.name for node in draft.graph if node.op_type == "RMSNormalization"]
    adds = [node for node in draft.graph if node.op_type == "SkipSimplifiedLayerNormalization"]
    # The first norm of the residual stream has no residual add before it.
    assert len(alone) == 1, alone
    assert len(adds) == 2 * LAYERS - len(sublayers_of(SHAPES[name]))
    assert all(add.outputs[0].uses() for add in adds)
    assert all(value.uses() for value in draft.graph.initializers.values())


def test_making_a_draft_leaves_the_verify_graph_alone(verify_graph: ir.Model, run_graph: RunGraph) -> None:
    before = run_graph(verify_graph, IDS)["logits"]
    lower_draft(verify_graph, SkipSet(attention=(1,), mlp=(2,)))
    np.testing.assert_array_equal(run_graph(verify_graph, IDS)["logits"], before)


def test_a_sublayer_without_a_residual_add_is_refused(verify_graph: ir.Model) -> None:
    with pytest.raises(UnsupportedModelError, match="no residual add was found for the attention of layer 9"):
        lower_draft(verify_graph, SkipSet(attention=(9,)))


def test_a_sublayer_whose_nodes_are_used_elsewhere_is_refused() -> None:
    made = HandMade()
    attention = made.scale(made.x, 2, "layers.0", "self_attn")
    first = made.node("Add", [made.x, attention], "layers.0")
    mlp = made.node("Mul", [first, attention], "layers.0", "mlp")
    second = made.node("Add", [first, mlp], "layers.0")
    assert made.nodes[0].name is None
    made.nodes[0].name = "doubled"
    with pytest.raises(UnsupportedModelError, match="node 'doubled' of a skipped sublayer is also used outside of it"):
        made.run(second, SkipSet(attention=(0,)))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("model", "layers.1", "self_attn", "o_proj"), Sublayer(1, "attention")),
        (("", "model", "layers.12", "mlp"), Sublayer(12, "mlp")),
        (("transformer", "h.3", "attn", "c_proj"), Sublayer(3, "attention")),
        (("model", "layers.1", "post_attention_layernorm"), None),
        (("model", "layers.1", "post_attn_norm"), None),
        (("model", "norm"), None),
        (("lm_head",), None),
    ],
)
def test_module_paths_name_sublayers(path: tuple[str, ...], expected: Sublayer | None) -> None:
    assert sublayer_of_path(path) == expected


class HandMade:
    """Graphs of other families' shapes, with numbers for projections, so that results are known."""

    def __init__(self) -> None:
        self.x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []

    def scale(self, value: ir.Value, factor: float, *path: str) -> ir.Value:
        """Multiplies a value by a number, in the module of this path."""
        constant = ir.Value(name=f"c{len(self.nodes)}", const_value=ir.tensor(np.asarray([factor], dtype=np.float32)))
        constant.const_value.name = constant.name  # type: ignore[union-attr] # just given
        self.initializers.append(constant)
        return self.node("Mul", [value, constant], *path)

    def node(self, op: str, inputs: list[ir.Value], *path: str) -> ir.Value:
        """Adds a node in the module of this path."""
        made = ir.node(op, inputs, metadata_props={"pkg.onnxscript.name_scopes": repr(list(path))})
        made.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(made)
        return made.outputs[0]

    def run(self, result: ir.Value, skip: SkipSet) -> float:
        """Elides a skip set and runs the rest of the graph on x = 1."""
        import onnxruntime as ort

        result = self.node("Identity", [result])  # an output of a graph cannot be replaced
        result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1])
        graph = ir.Graph([self.x], [result], nodes=self.nodes, initializers=self.initializers, opset_imports={"": 23}, name="g")
        model = ElidePass(skip)(ir.Model(graph, ir_version=10)).model
        session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
        return float(session.run(None, {"x": np.ones(1, dtype=np.float32)})[0][0])


@pytest.mark.parametrize(
    ("skip", "expected"),
    [(SkipSet(), 1 + 2 + 30), (SkipSet(attention=(0,)), 1 + 10), (SkipSet(mlp=(0,)), 1 + 2), (SkipSet(attention=(0,), mlp=(0,)), 1)],
)
def test_plain_additions_and_norms_on_the_branch(skip: SkipSet, expected: float) -> None:
    made = HandMade()
    attention = made.scale(made.x, 2, "layers.0", "self_attn")
    first = made.node("Add", [made.x, made.node("Identity", [attention], "layers.0", "post_attention_norm")], "layers.0")
    mlp = made.scale(first, 10, "layers.0", "mlp", "down_proj")
    second = made.node("Add", [made.scale(mlp, 1, "layers.0"), first], "layers.0")
    assert made.run(second, skip) == expected


@pytest.mark.parametrize(
    ("skip", "expected"),
    [(SkipSet(), 1 + 2 + 10), (SkipSet(attention=(0,)), 1 + 10), (SkipSet(mlp=(0,)), 1 + 2), (SkipSet(attention=(0,), mlp=(0,)), 1)],
)
def test_parallel_attention_and_mlp(skip: SkipSet, expected: float) -> None:
    made = HandMade()
    attention = made.scale(made.x, 2, "h.0", "attn")
    mlp = made.scale(made.x, 10, "h.0", "mlp")
    both = made.node("Add", [attention, mlp], "h.0")
    assert made.run(made.node("Add", [both, made.x], "h.0"), skip) == expected


def test_the_residual_stream_is_no_branch(verify_graph: ir.Model) -> None:
    adds = [node for node in verify_graph.graph if is_residual_add(node)]
    assert len(adds) == 2 * LAYERS
    for add in adds:
        branches = [branch_of(value) for value in add.inputs[:2]]
        assert branches.count(None) == 1


@pytest.mark.parametrize("branch_first", [False, True])
@pytest.mark.parametrize("kind", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_a_fused_residual_add_becomes_its_norm_alone(kind: str, branch_first: bool) -> None:
    width = 8
    x = floats("x", 1, 3, width)
    gamma, beta, bias, factor = (random_constant(name, width, seed=n) for n, name in enumerate(("gamma", "beta", "bias", "factor")))
    branch = ir.node("Mul", [x, factor], metadata_props=within("layers.0", "self_attn"))
    summands = [branch.outputs[0], x] if branch_first else [x, branch.outputs[0]]
    weights = [gamma, beta, bias] if kind == "SkipLayerNormalization" else [gamma, bias]  # the bias is the branch's
    add = ir.node(kind, [*summands, *weights], attributes={"epsilon": 1e-5}, domain="com.microsoft", num_outputs=4)
    ends = [named(ir.node("Identity", [add.outputs[place]]), name) for place, name in ((0, "norm"), (3, "sum"))]
    given = model_of([x], [end.outputs[0] for end in ends], [branch, add, *ends], factor, *weights)
    done = ElidePass(SkipSet(attention=(0,)))(given)
    assert done.modified
    rows = drawn(1, 3, width)
    found = run(done.model, x=rows)
    np.testing.assert_array_equal(found["sum"], rows)
    scale, shift = (value.const_value.numpy() for value in (gamma, beta) if value.const_value is not None)
    if kind == "SkipLayerNormalization":
        expected = scale * (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5) + shift
    else:
        expected = scale * rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found["norm"], expected, rtol=1e-5, atol=1e-6)
    assert not {"bias", "factor"} & set(done.model.graph.initializers)
