"""Makes a draft graph: the same graph without the skipped sublayers."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import onnx_ir as ir
from onnx_ir.passes import common

from ssruntime import graph_io
from ssruntime.artifact import SkipSet
from ssruntime.errors import UnsupportedModelError
from sstool.graph.sublayers import NORM_OF_FUSED_ADD, SUM_OUTPUT, Sublayer, branch_of, is_fused_residual_add, is_residual_add, sublayer_of


class ElidePass(ir.passes.InPlacePass):
    """Leaves sublayers out: the residual add of a skipped sublayer is replaced by its residual input.

    A residual add that is fused with the norm after it is replaced by that norm alone. Nodes that are no
    longer used are removed, and so are the KV cache input and output of a skipped attention, and the tables
    of a RoPE that no attention applies any more.

    Requires: inputs and outputs have the names of the graph contract; nodes are in topological order and have
    their module paths.
    Ensures: no node of a skipped sublayer is left; every initializer was there before, under the same name.
    Edits in place.
    """

    def __init__(self, skip: SkipSet) -> None:
        super().__init__()
        self._skip = sublayers_of(skip)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass.

        Raises:
            UnsupportedModelError: if a skipped sublayer has no residual add, or one of its nodes is also
                used outside of it.
        """
        graph = model.graph
        done: set[Sublayer] = set()
        # In topological order, so that the residual adds before a node have already been elided.
        for node in list(graph):
            if is_residual_add(node):
                done |= _elide_residual_add(graph, node, self._skip)
        if done != self._skip:
            lost = min(self._skip - done)
            raise UnsupportedModelError(
                f"no residual add was found for the {lost.kind} of layer {lost.layer}", "leave it out of the skip set"
            )
        _drop_kv_cache(model, self._skip)
        left = next((node for node in graph if sublayer_of(node) in self._skip), None)
        if left is not None:
            raise UnsupportedModelError(
                f"node {left.name!r} of a skipped sublayer is also used outside of it", "leave that sublayer out of the skip set"
            )
        return ir.passes.PassResult(model, modified=bool(done))


def sublayers_of(skip: SkipSet) -> frozenset[Sublayer]:
    """Returns the sublayers of a skip set."""
    return frozenset([*(Sublayer(n, "attention") for n in skip.attention), *(Sublayer(n, "mlp") for n in skip.mlp)])


def _elide_residual_add(graph: ir.Graph, node: ir.Node, skip: AbstractSet[Sublayer]) -> set[Sublayer]:
    """Replaces the residual add of a skipped branch by its residual input; returns what was elided."""
    for branch, residual in ((1, 0), (0, 1)):
        found = branch_of(node.inputs[branch])
        if found is None or found not in skip:
            continue
        stream = node.inputs[residual]
        assert stream is not None  # is_residual_add checked both
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


def norm_alone(residual_add: ir.Node, stream: ir.Value) -> ir.Node:
    """Returns the norm of a fused residual add as a new node over `stream`; the node is in no graph yet."""
    # The norm's weights follow the two summands. A bias of the branch may come last, and is left out.
    num_weights = 1 if residual_add.op_type == "SkipSimplifiedLayerNormalization" else 2
    weights = [v for v in residual_add.inputs[2 : 2 + num_weights] if v is not None]
    norm = ir.node(
        NORM_OF_FUSED_ADD[residual_add.op_type],
        [stream, *weights],
        attributes={"epsilon": residual_add.attributes["epsilon"].as_float(), "axis": -1},
        name=f"{residual_add.name}.alone",
        metadata_props=dict(residual_add.metadata_props),
    )
    result = residual_add.outputs[0]
    norm.outputs[0].name = f"{result.name}.alone"
    norm.outputs[0].type, norm.outputs[0].shape = result.type, result.shape
    return norm


def _drop_kv_cache(model: ir.Model, skip: AbstractSet[Sublayer]) -> None:
    graph = model.graph
    kept = []
    for value in graph.outputs:
        producer = value.producer()
        is_kv_cache = (value.name or "").startswith(graph_io.PRESENT_PREFIX)
        if not (is_kv_cache and producer is not None and sublayer_of(producer) in skip):
            kept.append(value)
    graph.outputs[:] = kept
    common.RemoveUnusedNodesPass()(model)
    of_attention = (graph_io.PAST_PREFIX, graph_io.ROPE_PREFIX)
    graph.inputs[:] = [v for v in graph.inputs if v.uses() or not (v.name or "").startswith(of_attention)]
