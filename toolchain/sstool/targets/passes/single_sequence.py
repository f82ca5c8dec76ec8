"""Removes the query lengths of rows from attention, for kernels that do not take them."""

from __future__ import annotations

import onnx_ir as ir

from ssruntime import graph_io
from sstool.graph.attention_kernel import QUERY_LENGTHS_INPUT, attentions


class SingleSequencePass(ir.passes.InPlacePass):
    """Removes the input `query_seqlens`: a pass then has one row, all of whose tokens are new.

    onnxruntime-gpu's kernel for CUDA does not know this input yet (version 1.31).

    Requires: the graph contract of ONNX Runtime targets.
    Ensures: no `query_seqlens`.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        for node in attentions(graph):
            if len(node.inputs) > QUERY_LENGTHS_INPUT:
                used = max((at for at, value in enumerate(node.inputs[:QUERY_LENGTHS_INPUT]) if value is not None), default=0)
                node.resize_inputs(used + 1)
        graph.inputs[:] = [value for value in graph.inputs if value.name != graph_io.QUERY_SEQLENS]
        return ir.passes.PassResult(model, modified=True)
