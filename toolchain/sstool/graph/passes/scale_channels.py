"""Moves large activation channels into the weights before and after them (SmoothQuant)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sstool.graph.channel_scaling import ScalingPlace, scaling_place
from sstool.graph.passes.constants import initializer
from sstool.graph.products import Product, product_groups


class ScaleChannelsPass(ir.passes.InPlacePass):
    """Divides channels of the inputs of products by factors, and multiplies the matrices' rows by them.

    The result is the same up to rounding; large channels of the input become smaller, which makes them
    cheaper to quantize. New weights stay lazy. Source: SmoothQuant, arXiv 2211.10438.

    Requires: each input has a `ScalingPlace`.
    Ensures: the constants there and the matrices have new names, because other graphs use the old ones.
    Edits in place.
    """

    def __init__(self, factors: Mapping[str, NDArray[np.float32]]) -> None:
        """Takes the factors float32[rows], by the name of a group of products."""
        super().__init__()
        self._factors = factors

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        groups = [group for group in product_groups(graph) if group.name in self._factors]
        assert len(groups) == len(self._factors), "a group is not in the graph"
        for group in groups:
            factor, place = self._factors[group.name], scaling_place(group)
            assert place is not None, f"{group.name}: its channels cannot be scaled"
            _divide(graph, place, factor)
            for product in group.products:
                _multiply_rows(graph, product, factor)
        return ir.passes.PassResult(model, modified=bool(groups))


def _divide(graph: ir.Graph, place: ScalingPlace, factor: NDArray[np.float32]) -> None:
    first = place.first_column
    for node, at in place.uses:
        if first is None:
            _replace(graph, node, at, lambda numbers: numbers / factor)
        else:
            _replace(graph, node, at, lambda numbers: _columns_divided(numbers, factor, first))


def _columns_divided(matrix: NDArray[np.float32], factor: NDArray[np.float32], first: int) -> NDArray[np.float32]:
    whole = np.ones(matrix.shape[1], dtype=np.float32)
    whole[first : first + len(factor)] = factor
    return matrix / whole


def _multiply_rows(graph: ir.Graph, product: Product, factor: NDArray[np.float32]) -> None:
    along = factor if product.is_transposed else factor[:, None]
    _replace(graph, product.node, 1, lambda numbers: numbers * along)


def _replace(graph: ir.Graph, node: ir.Node, at: int, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
    """Makes an input of a node a new initializer: the old one, changed when it is read."""
    old = node.inputs[at]
    assert old is not None
    tensor = old.const_value
    assert tensor is not None
    name = f"{old.name}.scaled"

    def read() -> ir.TensorProtocol:
        return ir.tensor(change(tensor.numpy()).astype(np.float32, copy=False), name=name)

    lazy = ir.LazyTensor(read, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)
    node.replace_input_with(at, initializer(graph, name, lazy))
    if not old.uses() and not old.is_graph_output():
        del graph.initializers[old.name or ""]
