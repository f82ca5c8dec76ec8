"""Single sublayers as engines on the residual stream, for a search that compares hidden states."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.artifact_files.graph_files import serialize
from sstool.graph.feeds import lengths
from sstool.graph.lower import lower_draft
from sstool.graph.passes.elide import norm_alone
from sstool.graph.sublayers import Sublayer, branch_of, is_fused_residual_add, is_residual_add
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import skip_of

_STREAM: Final = "stream"
_RESULT: Final = "stream_out"
_SHAPE: Final = ir.Shape([None, None, None])
_BIAS_AT: Final = {"SkipSimplifiedLayerNormalization": 3, "SkipLayerNormalization": 4}
"""Index of the input that holds the branch's bias in a fused residual add; the input is optional."""


class SublayerEngine:
    """One sublayer with its residual add: `stream + branch(stream)`."""

    def __init__(self, builder: DraftBuilder, place: int) -> None:
        """Builds and opens the engine.

        Args:
            builder: draft builder of the artifact.
            place: index of the sublayer in `space.Bits`.
        """
        self._graph = builder.backend.open_graph(serialize(_alone(builder, place)), "a sublayer")

    def run(self, stream: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the streams after the sublayer, float32[B, S, hidden], for streams from position 0 on."""
        return self._graph.run([_RESULT], {_STREAM: stream, **lengths(*stream.shape[:2])})[0]


class EmbeddingEngine:
    """The embedding as an engine, from token ids to the residual stream before the first sublayer."""

    def __init__(self, builder: DraftBuilder) -> None:
        graph = _copy_with_one(builder, 0)
        residual_add = _only_residual_add(graph)
        _, stream = _sides(residual_add, Sublayer(0, "attention"))
        graph.graph.outputs.clear()
        _finish(graph, stream, [])
        self._graph = builder.backend.open_graph(serialize(graph), "the embedding")

    def run(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the stream float32[1, S, hidden] of token ids int64[1, S], from position 0 on."""
        return self._graph.run([_RESULT], {graph_io.INPUT_IDS: ids, **lengths(*ids.shape)})[0]


def _alone(builder: DraftBuilder, place: int) -> ir.Model:
    """Returns the graph of one sublayer, from the residual stream before it to the one after it."""
    num_layers = builder.num_layers
    sublayer = Sublayer(place, "attention") if place < num_layers else Sublayer(place - num_layers, "mlp")
    model = _copy_with_one(builder, place)
    residual_add = _only_residual_add(model)
    branch, residual = _sides(residual_add, sublayer)
    stream = ir.Value(name=_STREAM, shape=_SHAPE, type=ir.TensorType(ir.DataType.FLOAT))
    source = residual.producer()
    if source is not None and is_fused_residual_add(source):
        # The sum of token and position embeddings is fused with the first norm. Replace it by the norm alone,
        # of `stream`.
        norm = norm_alone(source, stream)
        model.graph.insert_after(source, norm)
        ir.convenience.replace_all_uses_with(source.outputs[0], norm.outputs[0])
    ir.convenience.replace_all_uses_with(residual, stream)
    model.graph.inputs.append(stream)
    summands = [branch]
    bias_at = _BIAS_AT.get(residual_add.op_type)
    if bias_at is not None and len(residual_add.inputs) > bias_at and (bias := residual_add.inputs[bias_at]) is not None:
        summands.append(bias)
    _finish(model, stream, summands)
    return model


def _copy_with_one(builder: DraftBuilder, place: int) -> ir.Model:
    """Returns a copy of the model with only one sublayer left."""
    bits = [int(n != place) for n in range(2 * builder.num_layers)]
    return lower_draft(builder.verify, skip_of(bits))


def _only_residual_add(model: ir.Model) -> ir.Node:
    """Returns the one residual add of a model with a single sublayer."""
    residual_adds = [node for node in model.graph if is_residual_add(node) and any(branch_of(v) for v in node.inputs[:2])]
    if len(residual_adds) != 1:
        raise UnsupportedModelError(
            f"expected one residual add in a graph of one sublayer, found {len(residual_adds)}",
            "the sublayers of this model cannot be run alone",
        )
    return residual_adds[0]


def _sides(residual_add: ir.Node, sublayer: Sublayer) -> tuple[ir.Value, ir.Value]:
    """Returns the branch and the residual that a residual add sums."""
    assert is_fused_residual_add(residual_add) or residual_add.op_type == "Add"
    first, second = residual_add.inputs[:2]
    assert first is not None
    assert second is not None
    return (first, second) if branch_of(first) == sublayer else (second, first)


def _finish(model: ir.Model, stream: ir.Value, summands: list[ir.Value]) -> None:
    """Makes the sum of the stream and the summands the graph's output, and removes the unused rest."""
    total = stream
    for summand in summands:
        node = ir.node("Add", [total, summand])
        model.graph.append(node)
        total = node.outputs[0]
    result = ir.node("Identity", [total])
    model.graph.append(result)
    result.outputs[0].name = _RESULT
    result.outputs[0].type, result.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), _SHAPE
    presents = [v for v in model.graph.outputs if (v.name or "").startswith(graph_io.PRESENT_PREFIX)]
    model.graph.outputs[:] = [result.outputs[0], *presents]
    common.RemoveUnusedNodesPass()(model)
    model.graph.outputs[:] = [v for v in model.graph.outputs if v.producer() is not None]
    model.graph.inputs[:] = [v for v in model.graph.inputs if v.uses()]
    common.NameFixPass()(model)
