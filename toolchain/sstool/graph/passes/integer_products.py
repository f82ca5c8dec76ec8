"""Turns products into integer products: int8 weights, and activations that are quantized row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sstool.graph.passes.constants import constant, initializer, last_axis
from sstool.graph.products import Product, ProductGroup, product_groups

LEVELS: Final = 127
"""Largest absolute value of a quantized activation."""
ZERO: Final = 128
"""The unsigned number that stands for an activation of 0."""
QUANTIZED_SUFFIX: Final = ".int8"

_FLOAT: Final = ir.DataType.FLOAT


@dataclass(frozen=True, slots=True)
class IntegerMatrix:
    """A matrix as integers with one scale for each column: `matrix[k, n] = values[k, n] * scales[n]`.

    Attributes:
        values: int8[rows, columns]; may be lazy.
        scales: float32[columns].
    """

    values: ir.TensorProtocol
    scales: NDArray[np.float32]


class IntegerProductsPass(ir.passes.InPlacePass):
    """Replaces products with constant matrices by integer products that are exact sums at every query length.

    Each row of activations has a scale of its own, its largest absolute value over 127, and no other row has
    an influence on it. Products with the same input share its quantization. A row of zeros gives zeros.

    Requires: matrices by the names of products; activations in fp32.
    Ensures: `y = (MatMulIntegerToFloat(QuantizeLinear(x / bound), values) * scales / 127) * bound`, where
    `bound` is the row's largest absolute value. Matrices without another use are gone.
    Edits in place.
    """

    def __init__(self, matrices: Mapping[str, IntegerMatrix]) -> None:
        """Takes the matrices by the names of their products."""
        super().__init__()
        self._matrices = matrices

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph, done = model.graph, 0
        quantized: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        for group in product_groups(graph):
            for product in group.products:
                matrix = self._matrices.get(product.name)
                if matrix is None:
                    continue
                if group.source not in quantized:
                    quantized[group.source] = _quantize(graph, group)
                _replace(graph, product, matrix, *quantized[group.source])
                done += 1
        assert done == len(self._matrices), "a product is not in the graph"
        return ir.passes.PassResult(model, modified=bool(done))


def _quantize(graph: ir.Graph, group: ProductGroup) -> tuple[ir.Value, ir.Value]:
    """Inserts the quantization of an input; returns the uint8 activations and the bound of each row."""
    source = group.source
    producer = source.producer()
    before, scopes = group.products[0].node, {} if producer is None else dict(producer.metadata_props)
    row = None if source.shape is None else ir.Shape([*list(source.shape)[:-1], 1])
    step = constant(graph, "sstool.activation_step", np.array(1 / LEVELS, dtype=np.float32))

    def add(op: str, inputs: list[ir.Value], suffix: str, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
        attributes = {"keepdims": 1} if op == "ReduceMax" else {}
        node = ir.node(op, inputs, attributes=attributes, name=f"{source.name}{suffix}", metadata_props=scopes)
        graph.insert_before(before, node)
        result = node.outputs[0]
        result.name, result.type, result.shape = f"{source.name}{suffix}", ir.TensorType(dtype), shape
        return result

    absolute = add("Abs", [source], ".abs", _FLOAT, source.shape)
    bound = add("ReduceMax", [absolute, last_axis(graph)], ".bound", _FLOAT, row)
    # In a row of zeros this is 0 / 0. QuantizeLinear makes an integer of NaN, and times the bound it is 0.
    unit = add("Div", [source, bound], ".unit", _FLOAT, source.shape)
    return add("QuantizeLinear", [unit, step, _zero(graph)], QUANTIZED_SUFFIX, ir.DataType.UINT8, source.shape), bound


def _replace(graph: ir.Graph, product: Product, matrix: IntegerMatrix, quantized: ir.Value, bound: ir.Value) -> None:
    node, scopes = product.node, dict(product.node.metadata_props)
    # Named after the product: a tied LM head shares its matrix with the embedding.
    values = initializer(graph, f"{product.name}{QUANTIZED_SUFFIX}", matrix.values)
    scales = constant(graph, f"{product.name}.scales", (matrix.scales / np.float32(LEVELS)).astype(np.float32))
    one = constant(graph, "sstool.one", np.array(1, dtype=np.float32))
    inputs = [quantized, values, one, scales, _zero(graph)]
    sums = ir.node("MatMulIntegerToFloat", inputs, domain="com.microsoft", name=f"{product.name}.sums", metadata_props=scopes)
    scaled = ir.node("Mul", [sums.outputs[0], bound], name=f"{product.name}.rescaled", metadata_props=scopes)
    result = node.outputs[0]
    sums.outputs[0].name, sums.outputs[0].type, sums.outputs[0].shape = f"{product.name}.sums", result.type, result.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [sums, scaled], node.outputs, scaled.outputs)
    if not product.weight.uses():
        del graph.initializers[product.weight.name or ""]


def _zero(graph: ir.Graph) -> ir.Value:
    return constant(graph, "sstool.activation_zero", np.array(ZERO, dtype=np.uint8))
