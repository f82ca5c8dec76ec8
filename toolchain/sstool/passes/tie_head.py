"""A tied LM head multiplies with the embedding as it lies in the file, so that the weights hold it once and nothing is transposed."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common


class TieHeadPass(ir.passes.InPlacePass):
    """Turns `MatMul(x, Transpose(W))` with a constant matrix W into `com.microsoft.FusedMatMul(x, W, transB=1)`.

    ONNX Runtime packs FusedMatMul's constant operand as it packs MatMul's, and saves the pack with the model (1.32).

    Requires: nothing.
    Ensures: no product has a constant matrix that is transposed in the graph.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        modified = False
        for node in list(graph):
            transpose = _transpose_of_constant(node)
            if transpose is None:
                continue
            fused = ir.node(
                "FusedMatMul",
                [node.inputs[0], transpose.inputs[0]],
                attributes={"transB": 1},
                domain="com.microsoft",
                name=node.name,
                metadata_props=dict(node.metadata_props),
            )
            modified = True
            ir.convenience.replace_nodes_and_values(graph, node, [node], [fused], node.outputs, fused.outputs)
        if modified:
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def _transpose_of_constant(node: ir.Node) -> ir.Node | None:
    if node.op_type != "MatMul" or node.inputs[1] is None:
        return None
    transpose = node.inputs[1].producer()
    if transpose is None or transpose.op_type != "Transpose" or transpose.inputs[0] is None:
        return None
    is_matrix = transpose.inputs[0].const_value is not None and len(transpose.inputs[0].const_value.shape) == 2
    return transpose if is_matrix else None
