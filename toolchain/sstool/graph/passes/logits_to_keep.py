"""Applies the LM head only to the logits to keep: prefill needs those of one position among hundreds."""

from __future__ import annotations

import onnx_ir as ir

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.graph.passes.constants import last_axis


class LogitsToKeepPass(ir.passes.InPlacePass):
    """Gathers the LM head's input at `logits_index`, before the matrix product that computes `logits`.

    The gather comes after the final norm, whose cost for all positions is small compared with the layers. A
    gather before the norm would have to gather both inputs of the fused residual add.

    Requires: an output `logits`, computed by one matrix product of a hidden state `[batch, sequence, hidden]`
    and constant weights; elementwise steps (a bias, a scale, a soft cap) may follow the product.
    Ensures: an input `logits_index: int64[batch, num_logits]`; `logits` is `[batch, num_logits, vocab]`.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass. Raises UnsupportedModelError if the LM head cannot be found."""
        graph = model.graph
        head = _head(graph)
        hidden = head.inputs[0]
        assert hidden is not None  # _head checked it
        index = ir.Value(name=graph_io.LOGITS_INDEX, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "num_logits"]))
        last = last_axis(graph)
        indices = ir.node("Unsqueeze", [index, last], name="sstool.logits_index")
        kept = ir.node("GatherND", [hidden, indices.outputs[0]], attributes={"batch_dims": 1}, name="sstool.chosen_positions")
        kept.outputs[0].name = "sstool.chosen"
        kept.outputs[0].type = hidden.type
        if hidden.shape is not None:
            kept.outputs[0].shape = ir.Shape(["batch", "num_logits", *list(hidden.shape)[2:]])
        graph.insert_before(head, [indices, kept])
        head.replace_input_with(0, kept.outputs[0])
        graph.inputs.append(index)
        logits = head.outputs[0]
        for value in (logits, *(v for v in graph.outputs if v.name == graph_io.LOGITS)):
            if value.shape is not None:
                value.shape = ir.Shape(["batch", "num_logits", *list(value.shape)[2:]])
        return ir.passes.PassResult(model, modified=True)


def _head(graph: ir.Graph) -> ir.Node:
    node = next((v.producer() for v in graph.outputs if v.name == graph_io.LOGITS), None)
    while node is not None:
        if node.op_type in ("MatMul", "FusedMatMul") and node.inputs[0] is not None:
            return node
        computed = [v for v in node.inputs if v is not None and v.const_value is None]
        node = computed[0].producer() if len(computed) == 1 else None
    raise UnsupportedModelError("the graph's LM head is not one matrix product", "this model cannot be exported yet")
