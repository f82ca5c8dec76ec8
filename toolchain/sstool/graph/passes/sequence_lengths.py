"""Feeds sequence lengths to attention as two small inputs, instead of deriving them from a mask."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
from onnx_ir.passes import common

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.graph.attention_kernel import SEQLENS_INPUT, TOTAL_INPUT, attentions

_MASK: Final = "attention_mask"


class SequenceLengthsPass(ir.passes.InPlacePass):
    """Feeds `seqlens_k` and `total_sequence_length` to every GroupQueryAttention; removes `attention_mask`.

    Requires: every attention is GroupQueryAttention; nothing else uses `attention_mask`.
    Ensures: inputs `seqlens_k: int32[batch]` and `total_sequence_length: int32[]`; no `attention_mask`, and
    no nodes that compute lengths from it.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass. Raises UnsupportedModelError if the graph is not as required."""
        graph = model.graph
        seqlens = ir.Value(name=graph_io.SEQLENS_K, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(["batch"]))
        total = ir.Value(name=graph_io.TOTAL_SEQUENCE_LENGTH, type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape([]))
        found = attentions(graph)
        if not found or any(node.op_type == "Attention" for node in graph):
            raise UnsupportedModelError("the graph's attention was not lowered to GroupQueryAttention", "this model cannot be exported yet")
        for node in found:
            node.replace_input_with(SEQLENS_INPUT, seqlens)
            node.replace_input_with(TOTAL_INPUT, total)
        common.RemoveUnusedNodesPass()(model)
        for value in [v for v in graph.inputs if v.name == _MASK]:
            if value.uses():
                raise UnsupportedModelError(
                    "the graph uses its attention mask outside the attention kernels", "this model cannot be exported yet"
                )
            graph.inputs.remove(value)
        graph.inputs.extend([seqlens, total])
        return ir.passes.PassResult(model, modified=True)
