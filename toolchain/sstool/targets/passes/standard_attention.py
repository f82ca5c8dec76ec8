"""Replaces GroupQueryAttention by standard operators over a KV cache of fixed capacity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir
from onnx_ir.passes import common

from ssruntime import graph_io
from sstool.graph.attention_kernel import POSITIONS_INPUT, TABLE_INPUTS, applies_rope, attentions
from sstool.targets.passes.attention_mask import MaskInputs, MaskMaker
from sstool.targets.passes.inserter import Inserter, model_dtype, replace_value

_LENGTHS: Final = (graph_io.QUERY_SEQLENS, graph_io.SEQLENS_K, graph_io.TOTAL_SEQUENCE_LENGTH, graph_io.PAST_LENGTH)


class StandardAttentionPass(ir.passes.InPlacePass):
    """Rewrites attention to TensorScatter, RotaryEmbedding and Attention of opset 24.

    The KV cache is written first, and the new tokens attend to all of it under a mask of numbers that the
    graph computes. A soft cap is computed with products and a Tanh: TensorRT's Attention has none.

    Requires: the graph contract of ONNX Runtime targets (see `ssruntime.graph_io`), for chains or for trees,
    with a KV cache of `capacity` entries.
    Ensures: the standard graph contract: `write_indices: int64[batch]`, the first new entry of each row, in
    place of all lengths; a graph for trees keeps `tree_mask`.
    Edits in place.
    """

    def __init__(self, capacity: int) -> None:
        """Takes the number of entries of the KV cache."""
        super().__init__()
        self._capacity = capacity

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        start = ir.Value(name=graph_io.WRITE_INDICES, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch"]))
        graph.inputs.append(start)
        masks = self._masks(graph, start)
        for node in attentions(graph):
            _rewrite(graph, node, _Shape.of(node), start, masks)
        common.RemoveUnusedNodesPass()(model)
        graph.inputs[:] = [v for v in graph.inputs if v.name not in _LENGTHS]
        graph.sort()
        return ir.passes.PassResult(model, modified=True)

    def _masks(self, graph: ir.Graph, start: ir.Value) -> MaskMaker:
        inputs = {value.name: value for value in graph.inputs}
        dtype = model_dtype(graph)
        given = MaskInputs(
            ids=inputs[graph_io.INPUT_IDS],
            positions=inputs[graph_io.POSITION_IDS],
            start=start,
            tree=inputs.get(graph_io.TREE_MASK),
            capacity=self._capacity,
            dtype=dtype,
            hidden=graph_io.hidden_score(dtype.name.lower()),
        )
        return MaskMaker(Inserter(graph, graph[0], "sstool.mask"), given)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What a GroupQueryAttention says about its heads."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float
    window: int

    @staticmethod
    def of(node: ir.Node) -> _Shape:
        """Reads the attributes of a node."""
        found = {name: attribute.value for name, attribute in node.attributes.items()}
        past = node.inputs[3]
        assert past is not None
        assert past.shape is not None
        head_dim = past.shape[3]
        assert isinstance(head_dim, int)
        return _Shape(
            heads=found["num_heads"],
            kv_heads=found["kv_num_heads"],
            head_dim=head_dim,
            scale=found.get("scale") or 1 / math.sqrt(head_dim),
            softcap=found.get("softcap") or 0.0,
            window=max(0, found.get("local_window_size", 0)),
        )


def _rewrite(graph: ir.Graph, node: ir.Node, shape: _Shape, start: ir.Value, masks: MaskMaker) -> None:
    insert, dtype = Inserter(graph, node, f"{node.name}.standard"), model_dtype(graph)
    query, key, value = _split_heads(insert, node, shape, dtype)
    if applies_rope(node):
        query, key = (_rotated(insert, node, x, heads, shape, dtype) for x, heads in ((query, shape.heads), (key, shape.kv_heads)))
    cached = []
    for number, new in ((1, key), (2, value)):
        past, present = node.inputs[2 + number], node.outputs[number]
        assert past is not None
        written = insert.add("TensorScatter", [past, new, start], dtype, past.shape, {"axis": -2, "mode": "linear"})
        replace_value(present, written)
        cached.append(written)
    mask = masks.mask(shape.window)
    mixed = (_capped if shape.softcap else _attended)(insert, [query, *cached], mask, shape, dtype)
    rows = insert.add("Transpose", [mixed], dtype, ["batch", "sequence_len", shape.heads, shape.head_dim], {"perm": [0, 2, 1, 3]})
    width = shape.heads * shape.head_dim
    result = insert.add("Reshape", [rows, insert.integers(0, 0, width)], dtype, ["batch", "sequence_len", width])
    replace_value(node.outputs[0], result)
    graph.remove(node, safe=True)


def _split_heads(insert: Inserter, node: ir.Node, shape: _Shape, dtype: ir.DataType) -> list[ir.Value]:
    """Returns queries, keys and values, dtype[batch, heads, sequence, head_dim]."""
    packed, key, value = node.inputs[:3]
    counts = (shape.heads, shape.kv_heads, shape.kv_heads)
    if key is None:
        widths = [count * shape.head_dim for count in counts]
        outputs = [(dtype, ["batch", "sequence_len", width]) for width in widths]
        parts = list(insert.add_many("Split", [packed, insert.integers(*widths)], outputs, {"axis": -1}))
    else:
        assert packed is not None
        assert value is not None
        parts = [packed, key, value]
    heads = []
    for part, count in zip(parts, counts, strict=True):
        dims = ["batch", "sequence_len", count, shape.head_dim]
        split = insert.add("Reshape", [part, insert.integers(0, 0, count, shape.head_dim)], dtype, dims)
        heads.append(insert.add("Transpose", [split], dtype, ["batch", count, "sequence_len", shape.head_dim], {"perm": [0, 2, 1, 3]}))
    return heads


def _rotated(insert: Inserter, node: ir.Node, x: ir.Value, heads: int, shape: _Shape, dtype: ir.DataType) -> ir.Value:
    cosines, sines = (node.inputs[at] for at in TABLE_INPUTS)
    assert cosines is not None
    assert cosines.shape is not None
    rotated = 2 * int(cosines.shape[1])  # type: ignore[arg-type] # the number of pairs is known
    interleaved = node.attributes["rotary_interleaved"].as_int() if "rotary_interleaved" in node.attributes else 0
    attributes = {"interleaved": interleaved}
    if rotated != shape.head_dim:
        attributes["rotary_embedding_dim"] = rotated
    dims = ["batch", heads, "sequence_len", shape.head_dim]
    return insert.add("RotaryEmbedding", [x, cosines, sines, node.inputs[POSITIONS_INPUT]], dtype, dims, attributes)


def _attended(insert: Inserter, inputs: list[ir.Value], mask: ir.Value, shape: _Shape, dtype: ir.DataType) -> ir.Value:
    dims = ["batch", shape.heads, "sequence_len", shape.head_dim]
    return insert.add("Attention", [*inputs, mask], dtype, dims, {"scale": float(shape.scale)})


def _capped(insert: Inserter, inputs: list[ir.Value], mask: ir.Value, shape: _Shape, dtype: ir.DataType) -> ir.Value:
    """Returns attention with a soft cap on the scores, computed for each group of query heads."""
    query, keys, values = inputs
    scaled = insert.add("Mul", [query, insert.scalar(shape.scale, dtype)], dtype, None)
    # The query heads of a group are rows of one product: [batch, kv_heads, heads / kv_heads, sequence, ...].
    dims = [0, shape.kv_heads, shape.heads // shape.kv_heads, -1, shape.head_dim]
    grouped = insert.add("Reshape", [scaled, insert.integers(*dims)], dtype, None)
    turned = insert.add("Transpose", [keys], dtype, None, {"perm": [0, 1, 3, 2]})
    scores = insert.add("MatMul", [grouped, insert.add("Unsqueeze", [turned, insert.integers(2)], dtype, None)], dtype, None)
    bent = insert.add("Tanh", [insert.add("Mul", [scores, insert.scalar(1 / shape.softcap, dtype)], dtype, None)], dtype, None)
    capped = insert.add("Mul", [bent, insert.scalar(shape.softcap, dtype)], dtype, None)
    masked = insert.add("Add", [capped, insert.add("Unsqueeze", [mask, insert.integers(1)], dtype, None)], dtype, None)
    weights = insert.add("Softmax", [masked], dtype, None, {"axis": -1})
    mixed = insert.add("MatMul", [weights, insert.add("Unsqueeze", [values, insert.integers(2)], dtype, None)], dtype, None)
    whole = ["batch", shape.heads, "sequence_len", shape.head_dim]
    return insert.add("Reshape", [mixed, insert.integers(0, shape.heads, -1, shape.head_dim)], dtype, whole)
