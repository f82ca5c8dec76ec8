"""Fixes the dimensions that no pass changes."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from ssruntime import graph_io

_CACHE: Final = (graph_io.PAST_PREFIX, graph_io.PRESENT_PREFIX)


class StaticShapesPass(ir.passes.InPlacePass):
    """Sets the batch size to 1, and the length of the KV cache and of RoPE tables to its capacity.

    Requires: the graph contract of ONNX Runtime targets (see `ssruntime.graph_io`).
    Ensures: only the query length and the number of logits to keep vary.
    Edits in place.
    """

    def __init__(self, capacity: int) -> None:
        """Takes the number of entries of the KV cache."""
        super().__init__()
        self._capacity = capacity

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
            if value.shape is None:
                continue
            dims = [1 if str(dim) == "batch" else dim for dim in value.shape]
            if (value.name or "").startswith(graph_io.ROPE_PREFIX):
                dims[0] = self._capacity
            elif (value.name or "").startswith(_CACHE):
                dims[2] = self._capacity
            value.shape = ir.Shape(dims)
        return ir.passes.PassResult(model, modified=True)
