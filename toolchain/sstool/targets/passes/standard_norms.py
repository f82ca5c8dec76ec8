"""Replaces ONNX Runtime's norms by standard operators."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from sstool.graph.sublayers import NORM_OF_FUSED_ADD, SUM_OUTPUT
from sstool.targets.passes.inserter import Inserter, model_dtype, replace, replace_value

_NUM_WEIGHTS: Final = {"RMSNormalization": 1, "LayerNormalization": 2}


class StandardNormsPass(ir.passes.InPlacePass):
    """Replaces fused residual adds and `SimplifiedLayerNormalization`.

    Requires: nothing.
    Ensures: norms are RMSNormalization and LayerNormalization, and residual adds are Add.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        modified = False
        for node in list(graph):
            if node.op_type in NORM_OF_FUSED_ADD:
                _split(graph, node)
            elif node.op_type == "SimplifiedLayerNormalization":
                insert = Inserter(graph, node, f"{node.name}.standard")
                replace(graph, node, _norm(insert, "RMSNormalization", node, list(node.inputs[:2]), model_dtype(graph)))
            else:
                continue
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _split(graph: ir.Graph, node: ir.Node) -> None:
    """Replaces a fused residual add: two summands, the norm's weights, and maybe the branch's bias."""
    insert, kind = Inserter(graph, node, f"{node.name}.standard"), NORM_OF_FUSED_ADD[node.op_type]
    first, second, *rest = node.inputs
    dtype = model_dtype(graph)
    assert first is not None
    weights, bias = rest[: _NUM_WEIGHTS[kind]], rest[_NUM_WEIGHTS[kind] :]
    total = insert.add("Add", [first, second], dtype, first.shape)
    if bias and bias[0] is not None:
        total = insert.add("Add", [total, bias[0]], dtype, first.shape)
    if len(node.outputs) > SUM_OUTPUT:
        replace_value(node.outputs[SUM_OUTPUT], total)
    replace(graph, node, _norm(insert, kind, node, [total, *(weight for weight in weights if weight is not None)], dtype))


def _norm(insert: Inserter, kind: str, node: ir.Node, inputs: list[ir.Value | None], dtype: ir.DataType) -> ir.Value:
    attributes = {"epsilon": node.attributes["epsilon"].as_float(), "axis": -1}
    return insert.add(kind, inputs, dtype, node.outputs[0].shape, attributes)
