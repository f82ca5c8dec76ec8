"""Inserts typed nodes into a graph, one after another before a given node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ssruntime import graph_io
from sstool.graph.passes.constants import constant

Dims = Sequence[Any]


class Inserter:
    """Adds nodes before `anchor`, with unique names that begin with `prefix`."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node, prefix: str) -> None:
        """Takes the graph, the node that the new ones come before, and the prefix of their names."""
        self._graph = graph
        self._anchor = anchor
        self._prefix = prefix
        self._count = 0

    def add(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        dtype: ir.DataType,
        dims: Dims | ir.Shape | None,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """Returns the output of a new standard operator.

        Args:
            kind: name of the operator.
            inputs: its inputs.
            dtype: data type of its output.
            dims: shape of its output; None if it is not known.
            attributes: its attributes.
        """
        (value,) = self.add_many(kind, inputs, [(dtype, dims)], attributes)
        return value

    def add_many(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[tuple[ir.DataType, Dims | ir.Shape | None]],
        attributes: Mapping[str, Any] | None = None,
    ) -> Sequence[ir.Value]:
        """Returns the outputs of a new standard operator, whose data types and shapes are given."""
        self._count += 1
        name = f"{self._prefix}.{self._count}.{kind}"
        node = ir.node(
            kind,
            inputs,
            attributes=dict(attributes or {}),
            name=name,
            num_outputs=len(outputs),
            metadata_props=dict(self._anchor.metadata_props),
        )
        for number, (value, (dtype, dims)) in enumerate(zip(node.outputs, outputs, strict=True)):
            value.name, value.type = f"{name}.{number}", ir.TensorType(dtype)
            value.shape = dims if dims is None or isinstance(dims, ir.Shape) else ir.Shape(dims)
        self._graph.insert_before(self._anchor, node)
        return node.outputs

    def integers(self, *numbers: int) -> ir.Value:
        """Returns a constant int64[len(numbers)]."""
        return self._constant(np.array(numbers, dtype=np.int64), "_".join(map(str, numbers)))

    def integer(self, number: int) -> ir.Value:
        """Returns a constant int64[]."""
        return self._constant(np.array(number, dtype=np.int64), f"scalar_{number}")

    def scalar(self, number: float, dtype: ir.DataType) -> ir.Value:
        """Returns a constant of no dimensions."""
        return self._constant(np.array(number).astype(dtype.numpy()), f"{dtype.name.lower()}_{number!r}")

    def _constant(self, array: NDArray[Any], key: str) -> ir.Value:
        return constant(self._graph, f"sstool.standard.{key}", array)


def replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Puts a value in the place of a node's first output, and removes the node."""
    replace_value(node.outputs[0], value)
    graph.remove(node, safe=True)


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Puts a value in the place of another; as an output of the graph, it takes over that one's name."""
    new.shape, new.type = new.shape or old.shape, new.type or old.type
    if old.is_graph_output():
        old.name, new.name = f"{old.name}.replaced", old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def model_dtype(graph: ir.Graph) -> ir.DataType:
    """Returns the data type that a decoder graph computes in: that of its KV cache."""
    return next(v.dtype for v in graph.inputs if (v.name or "").startswith(graph_io.PAST_PREFIX) and v.dtype is not None)
