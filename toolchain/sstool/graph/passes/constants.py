"""Small whole-number constants of a graph, each registered once."""

from __future__ import annotations

import onnx_ir as ir


def int64_constant(graph: ir.Graph, name: str, number: int | list[int]) -> ir.Value:
    """Returns the graph's int64 constant of a name, which is registered at the first call with that name.

    Args:
        graph: where it is, or goes.
        name: always given with the same number.
        number: a scalar, or a list for one dimension.
    """
    found = graph.initializers.get(name)
    if found is not None:
        return found
    tensor = ir.tensor(number, dtype=ir.DataType.INT64, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(tensor.numpy().shape))
    graph.register_initializer(value)
    return value


def last_axis(graph: ir.Graph) -> ir.Value:
    """Returns the constant `[-1]`, for every pass that works along the last axis."""
    return int64_constant(graph, "sstool.last_axis", [-1])
