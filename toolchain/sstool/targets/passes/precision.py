"""Casts a decoder graph to 16 bits; logits and what is computed from them stay in fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ssruntime import graph_io

_FROM = ir.DataType.FLOAT


class PrecisionPass(ir.passes.InPlacePass):
    """Casts weights, inputs, KV cache and computation from fp32 to fp16 or bf16.

    Weights stay lazy: each is cast when it is written. Numbers beyond fp16's range become its largest.

    Requires: a graph of the graph contract in fp32.
    Ensures: everything of fp32 has the new data type, but for `logits` and the outputs computed from them:
    one Cast before `logits` brings these back to fp32.
    Edits in place.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        """Takes the new data type."""
        super().__init__()
        self._dtype = dtype

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        logits = next(v for v in graph.outputs if v.name == graph_io.LOGITS)
        kept = _computed_from(logits)
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype == _FROM:
                value.const_value = _cast(value.const_value, self._dtype)
                value.type = ir.TensorType(self._dtype)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if node.op_type == "Cast" and name == "to" and attribute.as_int() == _FROM:
                    node.attributes.add(ir.AttrInt64("to", int(self._dtype)))
                elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FROM:
                    node.attributes.add(ir.AttrTensor(name, _cast(attribute.as_tensor(), self._dtype)))
        for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
            if value.dtype == _FROM and value not in kept:
                value.type = ir.TensorType(self._dtype)
        _restore_logits(graph, logits, self._dtype)
        return ir.passes.PassResult(model, modified=True)


def _computed_from(logits: ir.Value) -> set[ir.Value]:
    """Returns the values that are computed from the logits."""
    found: set[ir.Value] = set()
    open_values = [logits]
    while open_values:
        for node, _ in open_values.pop().uses():
            new = [value for value in node.outputs if value not in found]
            found.update(new)
            open_values += new
    return found


def _restore_logits(graph: ir.Graph, logits: ir.Value, dtype: ir.DataType) -> None:
    producer = logits.producer()
    assert producer is not None
    cast = ir.node("Cast", [logits], attributes={"to": int(_FROM)}, name="sstool.logits_fp32")
    wide = cast.outputs[0]
    wide.type, wide.shape = ir.TensorType(_FROM), logits.shape
    ir.convenience.replace_all_uses_with(logits, wide, replace_graph_outputs=True)
    cast.replace_input_with(0, logits)
    graph.insert_after(producer, cast)
    logits.name, wide.name, logits.type = "sstool.logits", graph_io.LOGITS, ir.TensorType(dtype)


def _cast(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
    def compute(source: ir.TensorProtocol = tensor) -> ir.TensorProtocol:
        return ir.tensor(rounded(source.numpy(), dtype), dtype=dtype, name=tensor.name)

    lazy: Callable[[], Any] = compute
    return ir.LazyTensor(lazy, dtype=dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name, cache=tensor.nbytes < 1024)


def rounded(array: NDArray[Any], dtype: ir.DataType) -> NDArray[Any]:
    """Returns an array in a narrower data type, without infinities."""
    if dtype == ir.DataType.FLOAT16:
        limit = np.finfo(np.float16).max
        array = np.clip(array, -limit, limit)
    return array.astype(dtype.numpy())
