"""Registers a graph's constants, each of them once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Returns the graph's constant called `name`, and registers it first if it is not there yet.

    Args:
        graph: graph that holds the constant.
        name: name of the initializer; every call with this name must give the same values.
        array: values of the constant; their dtype and shape become the constant's.
    """
    found = graph.initializers.get(name)
    if found is not None:
        return found
    return initializer(graph, name, ir.tensor(array, name=name))


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Returns a new initializer of the graph, with a name that the graph does not have yet."""
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()))
    graph.register_initializer(value)
    return value


def int64_constant(graph: ir.Graph, name: str, number: int | list[int]) -> ir.Value:
    """Returns `constant` for an int64 scalar, or for a list as a constant of one dimension."""
    return constant(graph, name, np.array(number, dtype=np.int64))


def last_axis(graph: ir.Graph) -> ir.Value:
    """Returns the constant `[-1]`, shared by all passes that work along the last axis."""
    return int64_constant(graph, "sstool.last_axis", [-1])
