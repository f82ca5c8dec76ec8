"""Registers a graph's small int64 constants, each of them once."""

from __future__ import annotations

import onnx_ir as ir


def int64_constant(graph: ir.Graph, name: str, number: int | list[int]) -> ir.Value:
    """Returns the graph's int64 constant called `name`, and registers it first if it is not there yet.

    Args:
        graph: graph that holds the constant.
        name: name of the initializer; every call with this name must give the same `number`.
        number: value of the constant: a scalar, or a list for a constant of one dimension.
    """
    found = graph.initializers.get(name)
    if found is not None:
        return found
    tensor = ir.tensor(number, dtype=ir.DataType.INT64, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(tensor.numpy().shape))
    graph.register_initializer(value)
    return value


def last_axis(graph: ir.Graph) -> ir.Value:
    """Returns the constant `[-1]`, shared by all passes that work along the last axis."""
    return int64_constant(graph, "sstool.last_axis", [-1])
