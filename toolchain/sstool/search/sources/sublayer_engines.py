"""Each sublayer alone, as an engine on the residual stream: what a layer-by-layer search of hidden states steps through."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.graph.lower import lower_draft
from sstool.graph.passes.elide import norm_alone
from sstool.graph.sublayers import Sublayer, branch_of, is_fused_residual_add, is_residual_add
from sstool.search.drafts.builder import DraftBuilder, serialize
from sstool.search.drafts.space import skip_of

_STREAM: Final = "stream"
_RESULT: Final = "stream_out"
_SHAPE: Final = ir.Shape([None, None, None])
_BIAS_AT: Final = {"SkipSimplifiedLayerNormalization": 3, "SkipLayerNormalization": 4}
"""Where a fused join holds the bias of its branch, if it has one."""


class SublayerEngine:
    """One sublayer with its residual connection: `stream + branch(stream)`."""

    def __init__(self, builder: DraftBuilder, place: int) -> None:
        """Builds and opens it.

        Args:
            builder: of the artifact.
            place: of the sublayer, as in `space.Bits`.
        """
        self._session = builder.backend.open_graph(serialize(_alone(builder, place)), "a sublayer")
        self._pasts = [v for v in self._session.get_inputs() if v.name.startswith(graph_io.PAST_PREFIX)]
        self._names = {v.name for v in self._session.get_inputs()}

    def run(self, stream: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes streams float32[B, S, hidden] from position 0 on; returns what they are behind the sublayer."""
        batch, length, _ = stream.shape
        feeds: dict[str, NDArray[np.generic]] = {
            _STREAM: stream,
            graph_io.SEQLENS_K: np.full(batch, length - 1, dtype=np.int32),
            graph_io.TOTAL_SEQUENCE_LENGTH: np.array(length, dtype=np.int32),
            graph_io.POSITION_IDS: np.tile(np.arange(length, dtype=np.int64), (batch, 1)),
        }
        for value in self._pasts:
            feeds[value.name] = np.zeros((batch, value.shape[1], length, value.shape[3]), dtype=np.float32)
        result = self._session.run([_RESULT], {name: feed for name, feed in feeds.items() if name in self._names})[0]
        return np.asarray(result, dtype=np.float32)


class EmbeddingEngine:
    """The stream before the first sublayer."""

    def __init__(self, builder: DraftBuilder) -> None:
        graph = _copy_with_one(builder, 0)
        join = _only_join(graph)
        _, stream = _sides(join, Sublayer(0, "attention"))
        graph.graph.outputs.clear()
        _finish(graph, stream, [])
        self._session = builder.backend.open_graph(serialize(graph), "the embedding")
        self._names = {v.name for v in self._session.get_inputs()}

    def run(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Takes token ids int64[1, S] from position 0 on; returns float32[1, S, hidden]."""
        length = ids.shape[1]
        feeds: dict[str, NDArray[np.generic]] = {
            graph_io.INPUT_IDS: ids,
            graph_io.SEQLENS_K: np.array([length - 1], dtype=np.int32),
            graph_io.TOTAL_SEQUENCE_LENGTH: np.array(length, dtype=np.int32),
            graph_io.POSITION_IDS: np.arange(length, dtype=np.int64)[None],
        }
        result = self._session.run([_RESULT], {name: feed for name, feed in feeds.items() if name in self._names})[0]
        return np.asarray(result, dtype=np.float32)


def _alone(builder: DraftBuilder, place: int) -> ir.Model:
    """Returns the graph of one sublayer between the stream before it and the stream behind it."""
    num_layers = builder.num_layers
    sublayer = Sublayer(place, "attention") if place < num_layers else Sublayer(place - num_layers, "mlp")
    model = _copy_with_one(builder, place)
    join = _only_join(model)
    branch, residual = _sides(join, sublayer)
    stream = ir.Value(name=_STREAM, shape=_SHAPE, type=ir.TensorType(ir.DataType.FLOAT))
    source = residual.producer()
    if source is not None and is_fused_residual_add(source):
        # The embeddings' own sum (token and position), fused with the first norm: that norm is of the stream from here on.
        norm = norm_alone(source, stream)
        model.graph.insert_after(source, norm)
        ir.convenience.replace_all_uses_with(source.outputs[0], norm.outputs[0])
    ir.convenience.replace_all_uses_with(residual, stream)
    model.graph.inputs.append(stream)
    summands = [branch]
    bias_at = _BIAS_AT.get(join.op_type)
    if bias_at is not None and len(join.inputs) > bias_at and (bias := join.inputs[bias_at]) is not None:
        summands.append(bias)
    _finish(model, stream, summands)
    return model


def _copy_with_one(builder: DraftBuilder, place: int) -> ir.Model:
    """Returns the model with one sublayer left."""
    bits = [int(n != place) for n in range(2 * builder.num_layers)]
    return lower_draft(builder.verify, skip_of(bits))


def _only_join(model: ir.Model) -> ir.Node:
    joins = [node for node in model.graph if is_residual_add(node) and any(branch_of(v) for v in node.inputs[:2])]
    if len(joins) != 1:
        raise UnsupportedModelError(f"a sublayer alone joins the residual {len(joins)} times", "this model's sublayers cannot be parted")
    return joins[0]


def _sides(join: ir.Node, sublayer: Sublayer) -> tuple[ir.Value, ir.Value]:
    """Returns a join's branch and its residual."""
    assert is_fused_residual_add(join) or join.op_type == "Add"
    first, second = join.inputs[:2]
    assert first is not None
    assert second is not None
    return (first, second) if branch_of(first) == sublayer else (second, first)


def _finish(model: ir.Model, stream: ir.Value, summands: list[ir.Value]) -> None:
    """Makes the sum of the stream and some branches the graph's result, and drops what nothing of that needs."""
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
