"""Finds the products of activations with a constant matrix, which hold nearly all weights of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sstool.graph.sublayers import Sublayer, sublayer_of

_OPERATORS: Final = ("MatMul", "FusedMatMul")
_CHOOSING: Final = frozenset({"Softmax", "TopK"})
"""Operators that choose experts from a router's result; a quantized router could choose other experts."""
_MATRIX_RANK: Final = 2


@dataclass(frozen=True, slots=True)
class Product:
    """A product of activations with a constant matrix.

    Attributes:
        node: its node.
        source: the activations, [..., rows].
        weight: initializer of the matrix.
    """

    node: ir.Node
    source: ir.Value
    weight: ir.Value

    @property
    def name(self) -> str:
        """The name of its node, unique in the graph."""
        return self.node.name or ""

    @property
    def sublayer(self) -> Sublayer | None:
        """The sublayer that it is part of; None for the LM head."""
        return sublayer_of(self.node)

    @property
    def is_transposed(self) -> bool:
        """Whether the matrix is stored as [columns, rows]."""
        return self.node.op_type == "FusedMatMul"

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows (input channels) and columns (output channels) of the matrix."""
        assert self.weight.const_value is not None
        first, second = self.weight.const_value.shape.numpy()
        return (second, first) if self.is_transposed else (first, second)

    def matrix(self) -> NDArray[np.float32]:
        """Returns the matrix, float32[rows, columns], read from its file."""
        numbers = _numbers(self.weight.const_value).astype(np.float32, copy=False)
        return np.ascontiguousarray(numbers.T) if self.is_transposed else numbers


def _numbers(tensor: ir.TensorProtocol | None) -> NDArray[Any]:
    """Returns the numbers of a weight."""
    assert tensor is not None
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    # onnx-ir refuses files with several hard links, which an artifact shares with a copy of itself.
    return np.memmap(tensor.path, dtype=tensor.dtype.numpy(), mode="r", offset=tensor.offset or 0, shape=tuple(tensor.shape.numpy()))


@dataclass(frozen=True, slots=True)
class ProductGroup:
    """The products of one sublayer with the same input, such as those of queries, keys and values."""

    products: tuple[Product, ...]

    @property
    def source(self) -> ir.Value:
        """The input."""
        return self.products[0].source

    @property
    def name(self) -> str:
        """The name of the first product."""
        return self.products[0].name

    @property
    def sublayer(self) -> Sublayer | None:
        """The sublayer of the products; None for the LM head."""
        return self.products[0].sublayer


def product_groups(graph: ir.Graph) -> list[ProductGroup]:
    """Returns the products of a graph in its order, grouped by input and sublayer; routers are left out."""
    groups: dict[tuple[ir.Value, Sublayer | None], list[Product]] = {}
    for node in graph:
        source, weight = (node.inputs[0], node.inputs[1]) if node.op_type in _OPERATORS else (None, None)
        if source is None or weight is None or weight.const_value is None or len(weight.const_value.shape) != _MATRIX_RANK:
            continue
        if sublayer_of(node) is not None and any(use.node.op_type in _CHOOSING for use in node.outputs[0].uses()):
            continue
        product = Product(node, source, weight)
        groups.setdefault((source, product.sublayer), []).append(product)
    return [ProductGroup(tuple(products)) for products in groups.values()]


def products_of(groups: Sequence[ProductGroup]) -> list[Product]:
    """Returns all products of groups."""
    return [product for group in groups for product in group.products]
