"""Positions are counted in the graph, for models that look positions up instead of turning by them."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.passes.constants import int64_constant

_POSITIONS: Final = "position_ids"


class DerivePositionsPass(ir.passes.InPlacePass):
    """Replaces the input `position_ids` by a range that ends with the last valid token.

    Requires: inputs `input_ids: int64[batch, sequence]` and `seqlens_k: int32[batch]`.
    Ensures: no input `position_ids`; what used it gets int64[batch, sequence], `seqlens_k - sequence + 1` up to `seqlens_k` in each row.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass. Raises UnsupportedModelError if the graph lacks an input that it counts from."""
        graph = model.graph
        inputs = {v.name: v for v in graph.inputs}
        positions = inputs.get(_POSITIONS)
        if positions is None:
            return ir.passes.PassResult(model, modified=False)
        if graph_io.INPUT_IDS not in inputs or graph_io.SEQLENS_K not in inputs:
            raise UnsupportedModelError("the graph's positions have nothing to be counted from", "this model cannot be exported yet")
        nodes = _count(inputs[graph_io.INPUT_IDS], inputs[graph_io.SEQLENS_K], graph)
        counted = nodes[-1].outputs[0]
        counted.type, counted.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["batch", "sequence"])
        graph.insert_before(graph[0], nodes)
        ir.convenience.replace_all_uses_with(positions, counted)
        graph.inputs.remove(positions)
        return ir.passes.PassResult(model, modified=True)


def _count(ids: ir.Value, seqlens_k: ir.Value, graph: ir.Graph) -> list[ir.Node]:
    zero, one, column = (
        int64_constant(graph, f"sstool.positions.{name}", value) for name, value in (("zero", 0), ("one", 1), ("column", [1]))
    )
    shape = ir.node("Shape", [ids], attributes={"start": 1, "end": 2}, name="sstool.positions.shape")
    length = ir.node("Squeeze", [shape.outputs[0]], name="sstool.positions.length")
    steps = ir.node("Range", [zero, length.outputs[0], one], name="sstool.positions.steps")
    last = ir.node("Cast", [seqlens_k], attributes={"to": ir.DataType.INT64}, name="sstool.positions.last")
    end = ir.node("Add", [last.outputs[0], one], name="sstool.positions.end")
    start = ir.node("Sub", [end.outputs[0], length.outputs[0]], name="sstool.positions.start")
    rows = ir.node("Unsqueeze", [start.outputs[0], column], name="sstool.positions.rows")
    positions = ir.node("Add", [rows.outputs[0], steps.outputs[0]], name="sstool.positions")
    return [shape, length, steps, last, end, start, rows, positions]
