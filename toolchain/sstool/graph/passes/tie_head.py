"""A tied LM head multiplies with the embedding as it lies in the file, so that the weights hold it once and nothing is transposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

_MATRIX_RANK: Final = 2


class TieHeadPass(ir.passes.InPlacePass):
    """Turns a product with the transpose of a constant matrix W into `com.microsoft.FusedMatMul(x, W, transB=1)`.

    The transpose may be a node, or a constant of its own whose numbers are those of a table that tokens are looked up in.
    ONNX Runtime packs FusedMatMul's constant operand as it packs MatMul's, and saves the pack with the model (1.32).

    Requires: nothing.
    Ensures: no product has a constant matrix that is transposed in the graph, or that is a looked-up table's transpose.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        modified = False
        tables = [n.inputs[0] for n in graph if n.op_type == "Gather" and n.inputs[0] is not None and _is_matrix(n.inputs[0])]
        for node in list(graph):
            matrix = _transposed_constant(node, tables)
            if matrix is None:
                continue
            fused = ir.node(
                "FusedMatMul",
                [node.inputs[0], matrix],
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


def _transposed_constant(node: ir.Node, tables: Sequence[ir.Value]) -> ir.Value | None:
    """Returns the constant matrix whose transpose a node multiplies with."""
    factor = node.inputs[1] if node.op_type == "MatMul" else None
    if factor is None:
        return None
    producer = factor.producer()
    if producer is not None:
        matrix = producer.inputs[0] if producer.op_type == "Transpose" else None
        return matrix if matrix is not None and _is_matrix(matrix) else None
    return next((table for table in tables if _is_transpose(factor, table)), None)


def _is_matrix(value: ir.Value) -> bool:
    return value.const_value is not None and len(value.const_value.shape) == _MATRIX_RANK


def _is_transpose(left: ir.Value, right: ir.Value) -> bool:
    """Whether two constants are each other's transposes, number by number."""
    if not _is_matrix(left) or not _is_matrix(right):
        return False
    assert left.const_value is not None  # _is_matrix saw both
    assert right.const_value is not None
    if tuple(left.const_value.shape) != tuple(right.const_value.shape)[::-1]:
        return False
    return bool(np.array_equal(left.const_value.numpy().T, right.const_value.numpy()))
