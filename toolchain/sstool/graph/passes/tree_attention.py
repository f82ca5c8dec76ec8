"""Where new tokens stand and which of one another they see is told from outside, so that alternatives can be verified beside a draft."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
from onnx_ir.passes import common

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.graph.passes.constants import int64_constant

_KERNEL: Final = "GroupQueryAttention"
_POSITIONS_INPUT: Final = 9
_BIAS_INPUT: Final = 10


class TreeAttentionPass(ir.passes.InPlacePass):
    """Feeds positions and a tree mask to every GroupQueryAttention.

    Requires: attention is GroupQueryAttention without a bias of its own; an input `position_ids`, if there is one, looks positions up.
    Ensures: inputs `position_ids: int64[batch, sequence]`, by which rotary embedding, and what looked positions up, goes;
    `tree_mask: float[1, 1, sequence, sequence]`, which every attention adds to its scores of the new tokens; and `past_length: int64[1]`,
    how many tokens lie before these.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass. Raises UnsupportedModelError if an attention has a bias already."""
        graph = model.graph
        positions = next((v for v in graph.inputs if v.name == graph_io.POSITION_IDS), None)
        if positions is None:
            positions = _input(graph, graph_io.POSITION_IDS, ir.DataType.INT64, ["batch", "sequence_len"])
        bias = _bias(graph)
        for node in [n for n in graph if n.op_type == _KERNEL]:
            node.resize_inputs(max(len(node.inputs), _BIAS_INPUT + 1))
            if node.inputs[_BIAS_INPUT] is not None:
                raise UnsupportedModelError(f"attention {node.name!r} has a bias of its own", "this model cannot be exported yet")
            turns = "do_rotary" in node.attributes and node.attributes["do_rotary"].as_int() == 1
            node.replace_input_with(_POSITIONS_INPUT, positions if turns else None)
            node.replace_input_with(_BIAS_INPUT, bias)
        return ir.passes.PassResult(model, modified=True)


class CausalOnlyPass(ir.passes.InPlacePass):
    """Takes the tree mask away again: a draft is a chain, in which every token sees all before it.

    Requires: a graph as `TreeAttentionPass` leaves it, or a part of one.
    Ensures: no inputs `tree_mask` and `past_length`.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        for node in [n for n in graph if n.op_type == _KERNEL and len(n.inputs) > _BIAS_INPUT]:
            node.replace_input_with(_BIAS_INPUT, None)
        common.RemoveUnusedNodesPass()(model)
        graph.inputs[:] = [v for v in graph.inputs if v.name not in (graph_io.TREE_MASK, graph_io.PAST_LENGTH)]
        return ir.passes.PassResult(model, modified=True)


def _bias(graph: ir.Graph) -> ir.Value:
    """Returns what attention adds to its scores: nothing for the tokens before the new ones, and the mask for these.

    The kernels want it as long as the cache is filled. Padded in the graph, the mask can be bound once for each width: a binding for each
    length cost 30 us a pass.
    """
    mask = _input(graph, graph_io.TREE_MASK, ir.DataType.FLOAT, [1, 1, "sequence_len", "sequence_len"])
    length = _input(graph, graph_io.PAST_LENGTH, ir.DataType.INT64, [1])
    # The mask is padded before its last dimension: of the eight numbers that say so, the fourth.
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
