"""Adds `position_ids` and a tree-attention mask as graph inputs, so that one pass verifies a token tree.

The token tree of a verify pass is the draft sequence with its alternatives: side branches of one token each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import onnx_ir as ir
from onnx_ir.passes import common

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.graph.attention_kernel import BIAS_INPUT, POSITIONS_INPUT, applies_rope, attentions
from sstool.graph.passes.constants import int64_constant

_BIAS_SHAPE: Final = ("batch", 1, "sequence_len", "total_length")


class TreeAttentionPass(ir.passes.InPlacePass):
    """Feeds positions and a tree-attention mask to every GroupQueryAttention.

    An alternative's position differs from its slot in the KV cache, so the kernels cannot derive it.

    Requires: opset 24; attention is GroupQueryAttention without a bias of its own, and its lengths are
    inputs; an input `position_ids`, if there is one, is the index of learned position embeddings.
    Ensures: inputs `position_ids: int64[batch, sequence]`, used by RoPE and by learned position embeddings;
    `tree_mask: float[batch, 1, sequence, sequence]`, which every attention adds to its scores of the new
    tokens; and `past_length: int64[batch]`, the number of tokens in the KV cache before the new ones.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass. Raises UnsupportedModelError if an attention already has a bias."""
        graph = model.graph
        positions = next((v for v in graph.inputs if v.name == graph_io.POSITION_IDS), None)
        if positions is None:
            positions = _input(graph, graph_io.POSITION_IDS, ir.DataType.INT64, ["batch", "sequence_len"])
        bias = _bias(graph)
        for node in attentions(graph):
            node.resize_inputs(max(len(node.inputs), BIAS_INPUT + 1))
            if node.inputs[BIAS_INPUT] is not None:
                raise UnsupportedModelError(f"attention {node.name!r} has a bias of its own", "this model cannot be exported yet")
            node.replace_input_with(POSITIONS_INPUT, positions if applies_rope(node) else None)
            node.replace_input_with(BIAS_INPUT, bias)
        return ir.passes.PassResult(model, modified=True)


class CausalOnlyPass(ir.passes.InPlacePass):
    """Removes the tree-attention mask: a draft engine sees no side branches, so its attention is causal.

    Requires: a graph that `TreeAttentionPass` has rewritten, whole or with sublayers left out.
    Ensures: attention is causal; no inputs `tree_mask` and `past_length`.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        for node in [n for n in attentions(graph) if len(n.inputs) > BIAS_INPUT]:
            node.replace_input_with(BIAS_INPUT, None)
        common.RemoveUnusedNodesPass()(model)
        graph.inputs[:] = [v for v in graph.inputs if v.name not in (graph_io.TREE_MASK, graph_io.PAST_LENGTH)]
        return ir.passes.PassResult(model, modified=True)


def _bias(graph: ir.Graph) -> ir.Value:
    """Returns the bias of the attention scores: 0 for tokens in the KV cache, the mask for the new tokens.

    The kernels need a bias as long as the KV cache is filled. The graph writes the mask of each row into
    zeros of that length, so that the runtime binds one mask per query length. Binding one per length of the
    KV cache would slow every pass. Padding each row with Pad would cost 1 to 3 % of a pass; this costs
    nothing that can be measured.
    """
    mask = _input(graph, graph_io.TREE_MASK, ir.DataType.FLOAT, ["batch", 1, "sequence_len", "sequence_len"])
    start = _input(graph, graph_io.PAST_LENGTH, ir.DataType.INT64, ["batch"])
    total = next(v for v in graph.inputs if v.name == graph_io.TOTAL_SEQUENCE_LENGTH)
    length = _node("Cast", [total], ir.DataType.INT64, [], {"to": int(ir.DataType.INT64)})
    width = _node("Unsqueeze", [length, int64_constant(graph, "sstool.bias.axis", [0])], ir.DataType.INT64, [1], {})
    rows = _node("Shape", [mask], ir.DataType.INT64, [3], {"end": 3})
    shape = _node("Concat", [rows, width], ir.DataType.INT64, [4], {"axis": 0})
    zeros = _node("ConstantOfShape", [shape], ir.DataType.FLOAT, _BIAS_SHAPE, {"value": ir.tensor([0.0], dtype=ir.DataType.FLOAT)})
    bias = _node("TensorScatter", [zeros, mask, start], ir.DataType.FLOAT, _BIAS_SHAPE, {"axis": -1, "mode": "linear"})
    nodes = [v.producer() for v in (length, width, rows, shape, zeros, bias)]
    graph.insert_before(graph[0], [node for node in nodes if node is not None])
    bias.name = "sstool.bias"
    return bias


def _node(kind: str, inputs: list[ir.Value], dtype: ir.DataType, shape: Sequence[int | str], attributes: Mapping[str, Any]) -> ir.Value:
    """Returns the output of a new node that is not in a graph yet."""
    node = ir.node(kind, inputs, attributes=dict(attributes), name=f"sstool.bias.{kind}")
    output: ir.Value = node.outputs[0]
    output.name, output.type, output.shape = node.name, ir.TensorType(dtype), ir.Shape(shape)
    return output


def _input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value
