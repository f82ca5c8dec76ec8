"""Where a skipped sublayer stood between a join and the next norm, the join takes that norm over: one kernel instead of two."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from sstool.graph.sublayers import NORM_OF_FUSED_ADD, SUM_OUTPUT, is_fused_residual_add


class FuseResidualNormsPass(ir.passes.InPlacePass):
    """Fuses a norm with the join whose sum it takes, if the join's own norm serves nobody any more.

    In a small model each kernel costs some microseconds whatever it computes, and a draft that skips the sublayer behind a join would
    have two norms there: the join's, unused, and the next sublayer's.

    Requires: nothing.
    Ensures: no norm of a fused join's sum is left beside an unused norm of the same kind and epsilon that has room for its weights;
        no initializer is unused.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        modified = False
        for join in list(graph):
            norm = _norm_to_take(graph, join)
            if norm is None:
                continue
            for place, weight in enumerate(_weights(norm), start=2):
                if place < len(join.inputs):
                    join.replace_input_with(place, weight)
            ir.convenience.replace_all_uses_with(norm.outputs[0], join.outputs[0])
            graph.remove(norm, safe=True)
            modified = True
        if modified:
            common.RemoveUnusedNodesPass()(model)  # the weights of the norms that nobody used
        return ir.passes.PassResult(model, modified=modified)


def _norm_to_take(graph: ir.Graph, join: ir.Node) -> ir.Node | None:
    """Returns the norm that a join can take over; None where there is none, or the join's own is used."""
    if not is_fused_residual_add(join) or len(join.outputs) <= SUM_OUTPUT:
        return None
    if join.outputs[0].uses() or join.outputs[0] in graph.outputs:
        return None
    for use in join.outputs[SUM_OUTPUT].uses():
        norm = use.node
        same = norm.op_type == NORM_OF_FUSED_ADD[join.op_type] and use.idx == 0 and norm.outputs[0] not in graph.outputs
        fits = 2 + sum(weight is not None for weight in _weights(norm)) <= len(join.inputs)
        if same and fits and _is_over_last_axis(norm) and _epsilon(norm) == _epsilon(join):
            return norm
    return None


def _weights(norm: ir.Node) -> list[ir.Value | None]:
    """Returns a norm's weights, None for the bias that a LayerNormalization may lack."""
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
