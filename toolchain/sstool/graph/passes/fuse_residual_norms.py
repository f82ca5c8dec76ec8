"""Fuses a residual add with the norm of the next kept sublayer, so that one kernel runs instead of two."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from sstool.graph.sublayers import NORM_OF_FUSED_ADD, SUM_OUTPUT, is_fused_residual_add


class FuseResidualNormsPass(ir.passes.InPlacePass):
    """Fuses a norm with the residual add whose sum it normalizes, if the residual add's own norm is unused.

    A draft that skips the sublayer after a fused residual add has two norms of the same sum: the fused one,
    which only the skipped sublayer used, and the one of the next kept sublayer. In a small model every kernel
    costs some microseconds, whatever it computes.

    Requires: nothing.
    Ensures: wherever a fused residual add's own norm is unused, no separate norm of the same sum is left that
    has the same kind and epsilon and whose weights fit the residual add's inputs. If anything was fused, no
    initializer is unused.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        modified = False
        for residual_add in list(graph):
            norm = _norm_to_fuse(graph, residual_add)
            if norm is None:
                continue
            for place, weight in enumerate(_weights(norm), start=2):
                if place < len(residual_add.inputs):
                    residual_add.replace_input_with(place, weight)
            ir.convenience.replace_all_uses_with(norm.outputs[0], residual_add.outputs[0])
            graph.remove(norm, safe=True)
            modified = True
        if modified:
            common.RemoveUnusedNodesPass()(model)  # removes the weights of the unused norms
        return ir.passes.PassResult(model, modified=modified)


def _norm_to_fuse(graph: ir.Graph, residual_add: ir.Node) -> ir.Node | None:
    """Returns the norm to fuse with a residual add; None if none fits, or if the add's own norm is used."""
    if not is_fused_residual_add(residual_add) or len(residual_add.outputs) <= SUM_OUTPUT:
        return None
    if residual_add.outputs[0].uses() or residual_add.outputs[0] in graph.outputs:
        return None
    for use in residual_add.outputs[SUM_OUTPUT].uses():
        norm = use.node
        same = norm.op_type == NORM_OF_FUSED_ADD[residual_add.op_type] and use.idx == 0 and norm.outputs[0] not in graph.outputs
        fits = 2 + sum(weight is not None for weight in _weights(norm)) <= len(residual_add.inputs)
        if same and fits and _is_over_last_axis(norm) and _epsilon(norm) == _epsilon(residual_add):
            return norm
    return None


def _weights(norm: ir.Node) -> list[ir.Value | None]:
    """Returns a norm's weights, with None for the bias if a LayerNormalization has none."""
    weights = list(norm.inputs[1:])
    if norm.op_type == "LayerNormalization" and len(weights) == 1:
        weights.append(None)
    return weights


def _is_over_last_axis(norm: ir.Node) -> bool:
    axis = norm.attributes.get("axis")
    return axis is None or axis.as_int() == -1


def _epsilon(node: ir.Node) -> float | None:
    epsilon = node.attributes.get("epsilon")
    return None if epsilon is None else epsilon.as_float()
