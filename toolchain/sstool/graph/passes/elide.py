"""A draft graph: the same graph with some sublayers left out of the residual stream."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import onnx_ir as ir
from onnx_ir.passes import common

from ssruntime import graph_io
from ssruntime.artifact import SkipSet
from ssruntime.errors import UnsupportedModelError
from sstool.graph.sublayers import NORM_OF_FUSED_ADD, SUM_OUTPUT, Sublayer, branch_of, is_fused_residual_add, is_residual_add, sublayer_of


class ElidePass(ir.passes.InPlacePass):
    """Leaves sublayers out: where a skipped branch joins the residual stream, the join becomes the residual.

    A join that is fused with the norm after it becomes that norm alone. Whatever then computes nothing goes, and with a skipped
    attention its cache's input and output.

    Requires: a graph in the contract's names, its nodes in topological order with their module paths.
    Ensures: no node of a skipped sublayer is left; every initializer is one of the graph before, under its name.
    Edits in place.
    """

    def __init__(self, skip: SkipSet) -> None:
        super().__init__()
        self._skip = sublayers_of(skip)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass. Raises UnsupportedModelError if a skipped sublayer joins nowhere, or its nodes serve another."""
        graph = model.graph
        done: set[Sublayer] = set()
        # In topological order, so that a join sees the joins before it already elided.
        for node in list(graph):
            if is_residual_add(node):
                done |= _elide_residual_add(graph, node, self._skip)
        if done != self._skip:
            lost = min(self._skip - done)
            raise UnsupportedModelError(
                f"the {lost.kind} of layer {lost.layer} joins no residual that can be found", "leave it out of the skip set"
            )
        _drop_caches(model, self._skip)
        left = next((node for node in graph if sublayer_of(node) in self._skip), None)
        if left is not None:
            raise UnsupportedModelError(f"node {left.name!r} of a skipped sublayer serves another one", "leave that sublayer in")
        return ir.passes.PassResult(model, modified=bool(done))


def sublayers_of(skip: SkipSet) -> frozenset[Sublayer]:
    """Returns the sublayers of a skip set."""
    return frozenset([*(Sublayer(n, "attention") for n in skip.attention), *(Sublayer(n, "mlp") for n in skip.mlp)])


def _elide_residual_add(graph: ir.Graph, node: ir.Node, skip: AbstractSet[Sublayer]) -> set[Sublayer]:
    """Replaces one join by its residual if one of its two sides is a skipped branch; gives what was elided."""
    for branch, residual in ((1, 0), (0, 1)):
        found = branch_of(node.inputs[branch])
        if found is None or found not in skip:
            continue
        stream = node.inputs[residual]
        assert stream is not None  # is_join saw both
        if not is_fused_residual_add(node):
            ir.convenience.replace_all_uses_with(node.outputs[0], stream)
            return {found}
        if len(node.outputs) > SUM_OUTPUT:
            ir.convenience.replace_all_uses_with(node.outputs[SUM_OUTPUT], stream)
        norm = norm_alone(node, stream)
        graph.insert_before(node, norm)
        ir.convenience.replace_all_uses_with(node.outputs[0], norm.outputs[0])
        return {found}
    return set()


def norm_alone(join: ir.Node, stream: ir.Value) -> ir.Node:
    """Returns the norm of a fused join as a node of its own, over another stream; it is in no graph yet."""
    # After the two summands come the norm's own weights; a bias of the branch, fused behind them, goes with the branch.
    num_weights = 1 if join.op_type == "SkipSimplifiedLayerNormalization" else 2
    weights = [v for v in join.inputs[2 : 2 + num_weights] if v is not None]
    norm = ir.node(
        NORM_OF_FUSED_ADD[join.op_type],
        [stream, *weights],
        attributes={"epsilon": join.attributes["epsilon"].as_float(), "axis": -1},
        name=f"{join.name}.alone",
        metadata_props=dict(join.metadata_props),
    )
    result = join.outputs[0]
    norm.outputs[0].name = f"{result.name}.alone"
    norm.outputs[0].type, norm.outputs[0].shape = result.type, result.shape
    return norm


def _drop_caches(model: ir.Model, skip: AbstractSet[Sublayer]) -> None:
    graph = model.graph
    kept = []
    for value in graph.outputs:
        producer = value.producer()
        is_cache = (value.name or "").startswith(graph_io.PRESENT_PREFIX)
        if not (is_cache and producer is not None and sublayer_of(producer) in skip):
            kept.append(value)
    graph.outputs[:] = kept
    common.RemoveUnusedNodesPass()(model)
    graph.inputs[:] = [v for v in graph.inputs if v.uses() or not (v.name or "").startswith(graph_io.PAST_PREFIX)]
