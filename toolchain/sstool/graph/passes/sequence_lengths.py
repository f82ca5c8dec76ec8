"""Feeds sequence lengths to attention as small inputs, instead of deriving them from a mask."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
from onnx_ir.passes import common

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.graph.attention_kernel import QUERY_LENGTHS_INPUT, SEQLENS_INPUT, TOTAL_INPUT, attentions

_MASK: Final = "attention_mask"


class SequenceLengthsPass(ir.passes.InPlacePass):
    """Feeds the lengths of a pass to every GroupQueryAttention, and removes `attention_mask`.

    Requires: every attention is GroupQueryAttention; nothing else uses `attention_mask`.
    Ensures: inputs `query_seqlens: int32[batch]`, `seqlens_k: int32[batch]` and `total_sequence_length:
    int32[]`; no `attention_mask`, and no nodes that compute lengths from it.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass. Raises UnsupportedModelError if the graph is not as required."""
        graph = model.graph
        query, seqlens = _lengths(graph_io.QUERY_SEQLENS, 1), _lengths(graph_io.SEQLENS_K, 1)
        total = _lengths(graph_io.TOTAL_SEQUENCE_LENGTH, 0)
        found = attentions(graph)
        if not found or any(node.op_type == "Attention" for node in graph):
            raise UnsupportedModelError("the graph's attention was not lowered to GroupQueryAttention", "this model cannot be exported yet")
        for node in found:
            node.resize_inputs(max(len(node.inputs), QUERY_LENGTHS_INPUT + 1))
            node.replace_input_with(QUERY_LENGTHS_INPUT, query)
            node.replace_input_with(SEQLENS_INPUT, seqlens)
            node.replace_input_with(TOTAL_INPUT, total)
        common.RemoveUnusedNodesPass()(model)
        for value in [v for v in graph.inputs if v.name == _MASK]:
            if value.uses():
                raise UnsupportedModelError(
                    "the graph uses its attention mask outside the attention kernels", "this model cannot be exported yet"
                )
            graph.inputs.remove(value)
        graph.inputs.extend([query, seqlens, total])
        return ir.passes.PassResult(model, modified=True)


def _lengths(name: str, rank: int) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(["batch"] * rank))
