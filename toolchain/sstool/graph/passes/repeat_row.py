"""Runs attention on two equal rows in passes of one token, whose result then has the bits of a wider pass."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from sstool.graph.attention_kernel import POSITIONS_INPUT, attentions

_QUERY_KEY_VALUE: Final = (0, 1, 2)


class RepeatRowPass(ir.passes.InPlacePass):
    """Repeats the only token of a pass for every GroupQueryAttention, and cuts off the second row after it.

    ONNX Runtime's CPU kernel computes a single query row in another way than several: the sums are ordered
    differently, and so the logits differ in their last bits. With two rows they are equal to the bit,
    whatever the query length.

    Requires: attention is GroupQueryAttention without a bias; passes have a query length of 1.
    Ensures: attention runs on two equal rows. The lengths that the runtime feeds count both of them, and the
    second row's keys and values are written to the entry after the first one's.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        repeated: dict[ir.Value, ir.Value] = {}
        for node in attentions(graph):
            for index in (*_QUERY_KEY_VALUE, POSITIONS_INPUT):
                value = node.inputs[index] if index < len(node.inputs) else None
                if value is None:
                    continue
                if value not in repeated:
                    repeated[value] = _repeat(graph, node, value)
                node.replace_input_with(index, repeated[value])
            _cut(graph, node)
        return ir.passes.PassResult(model, modified=True)


def _repeat(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    twice = ir.node("Concat", [value, value], attributes={"axis": 1}, name=f"{value.name}.twice")
    twice.outputs[0].name, twice.outputs[0].type, twice.outputs[0].shape = twice.name, value.type, _shape(value, 2)
    graph.insert_before(before, twice)
    return twice.outputs[0]


def _cut(graph: ir.Graph, attention: ir.Node) -> None:
    rows = attention.outputs[0]
    # Not Slice: it would need constants, and a graph beside the verify graph has none of its own.
    split = ir.node("Split", [rows], attributes={"axis": 1, "num_outputs": 2}, num_outputs=2, name=f"{rows.name}.rows")
    for row, output in zip(("first", "second"), split.outputs, strict=True):
        output.name, output.type, output.shape = f"{rows.name}.{row}", rows.type, _shape(rows, 1)
    rows.shape = _shape(rows, 2)
    ir.convenience.replace_all_uses_with(rows, split.outputs[0], replace_graph_outputs=True)
    split.replace_input_with(0, rows)
    graph.insert_after(attention, split)


def _shape(value: ir.Value, rows: int) -> ir.Shape | None:
    if value.shape is None:
        return None
    dims = list(value.shape)
    dims[1] = rows
    return ir.Shape(dims)
