"""Lets a tied LM head use the embedding matrix as it is stored, so that the weights hold it only once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

_MATRIX_RANK: Final = 2


class TieHeadPass(ir.passes.InPlacePass):
    """Turns a product with a constant matrix's transpose into `com.microsoft.FusedMatMul(x, W, transB=1)`.

    The transpose is computed by a node, or is a second constant that repeats the numbers of an embedding
    matrix. ONNX Runtime 1.32 prepacks FusedMatMul's constant operand like MatMul's, and saves it with the
    model.

    Requires: nothing.
    Ensures: no product uses the transpose of a constant matrix that a node computes, or the transpose of an
    embedding matrix as a constant of its own.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        modified = False
        embeddings = [n.inputs[0] for n in graph if n.op_type == "Gather" and n.inputs[0] is not None and _is_matrix(n.inputs[0])]
        for node in list(graph):
            matrix = _transposed_constant(node, embeddings)
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


def _transposed_constant(node: ir.Node, embeddings: Sequence[ir.Value]) -> ir.Value | None:
    """Returns the constant matrix whose transpose a node multiplies with; None if there is none."""
    factor = node.inputs[1] if node.op_type == "MatMul" else None
    if factor is None:
        return None
    producer = factor.producer()
    if producer is not None:
        matrix = producer.inputs[0] if producer.op_type == "Transpose" else None
        return matrix if matrix is not None and _is_matrix(matrix) else None
    return next((matrix for matrix in embeddings if _is_transpose(factor, matrix)), None)


def _is_matrix(value: ir.Value) -> bool:
    return value.const_value is not None and len(value.const_value.shape) == _MATRIX_RANK


def _is_transpose(left: ir.Value, right: ir.Value) -> bool:
    """Returns whether two constant matrices are each other's transposes, compared number by number."""
    if not _is_matrix(left) or not _is_matrix(right):
        return False
    assert left.const_value is not None  # _is_matrix checked both
    assert right.const_value is not None
    if tuple(left.const_value.shape) != tuple(right.const_value.shape)[::-1]:
        return False
    return bool(np.array_equal(left.const_value.numpy().T, right.const_value.numpy()))
