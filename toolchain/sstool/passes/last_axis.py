"""One constant `[-1]` in a graph, for every pass that works along the last axis."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

_NAME: Final = "sstool.last_axis"


def last_axis(graph: ir.Graph) -> ir.Value:
    """Returns the graph's constant int64[1] of value -1, registered at the first call."""
    found = graph.initializers.get(_NAME)
    if found is not None:
        return found
    value = ir.Value(
        name=_NAME,
        const_value=ir.tensor([-1], dtype=ir.DataType.INT64, name=_NAME),
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([1]),
    )
    graph.register_initializer(value)
    return value
