"""Adds `position_ids` and a tree-attention mask as graph inputs, so that one pass verifies a token tree.

The token tree of a verify pass is the draft sequence with its alternatives: side branches of one token each.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.graph.attention_kernel import BIAS_INPUT, POSITIONS_INPUT, applies_rope, attentions
from sstool.graph.passes.constants import int64_constant


class TreeAttentionPass(ir.passes.InPlacePass):
    """Feeds positions and a tree-attention mask to every GroupQueryAttention.

    An alternative's position differs from its slot in the KV cache, so the kernels cannot derive it.

    Requires: attention is GroupQueryAttention without a bias of its own; an input `position_ids`, if there is
    one, is the index of learned position embeddings.
    Ensures: inputs `position_ids: int64[batch, sequence]`, used by RoPE and by learned position embeddings;
    `tree_mask: float[1, 1, sequence, sequence]`, which every attention adds to its scores of the new tokens;
    and `past_length: int64[1]`, the number of tokens in the KV cache before the new ones.
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

    The kernels need a bias as long as the filled KV cache. The mask is padded to it in the graph, so that the
    runtime binds one mask per query length. Binding one per length of the KV cache would slow every pass.
    """
    mask = _input(graph, graph_io.TREE_MASK, ir.DataType.FLOAT, [1, 1, "sequence_len", "sequence_len"])
    length = _input(graph, graph_io.PAST_LENGTH, ir.DataType.INT64, [1])
    # `pads` is four begins and four ends: `past_length` for the begin of the last axis, and 0 elsewhere.
    pads = ir.node("Pad", [length, int64_constant(graph, "sstool.bias.place", [3, 4])], name="sstool.bias.pads")
    bias = ir.node("Pad", [mask, pads.outputs[0]], name="sstool.bias")
    pads.outputs[0].type, pads.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([8])
    bias.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    bias.outputs[0].shape = ir.Shape([1, 1, "sequence_len", "total_length"])
    graph.insert_before(graph[0], [pads, bias])
    return bias.outputs[0]


def _input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value
