"""Finds the weights that can absorb a scale of a product's input channels, such as those of a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from sstool.graph.products import ProductGroup

_NORM_VECTORS: Final = {
    "RMSNormalization": (1,),
    "LayerNormalization": (1, 2),
    "SkipSimplifiedLayerNormalization": (2,),
    "SkipLayerNormalization": (2, 3),
}
"""Inputs of each norm that scale or shift the channels of output 0."""


@dataclass(frozen=True, slots=True)
class ScalingPlace:
    """Weights that a value is proportional to, channel by channel: dividing them divides its channels.

    Attributes:
        uses: node and input index of each of these weights: vectors of a norm, or the matrix of a product.
        first_column: for a matrix, the column of the first channel; None for vectors.
    """

    uses: tuple[tuple[ir.Node, int], ...]
    first_column: int | None = None


def scaling_place(group: ProductGroup) -> ScalingPlace | None:
    """Returns where the channels of a group's input can be scaled; None if nowhere.

    Either the input is the result of a norm, or it is the gated product of an MLP, `act(gate) * up`, which is
    proportional to the columns of the up projection. The input must have no other use.
    """
    source = group.source
    node = source.producer()
    nodes = {product.node for product in group.products}
    if node is None or source.is_graph_output() or {use.node for use in source.uses()} != nodes:
        return None
    if node.op_type in _NORM_VECTORS:
        return _of_norm(node, source)
    return _of_gated_product(node) if node.op_type == "Mul" else None


def _of_norm(norm: ir.Node, result: ir.Value) -> ScalingPlace | None:
    places = tuple((norm, at) for at in _NORM_VECTORS[norm.op_type] if at < len(norm.inputs) and norm.inputs[at] is not None)
    is_constant = all((value := node.inputs[at]) is not None and value.const_value is not None for node, at in places)
    return ScalingPlace(places) if norm.outputs[0] is result and places and is_constant else None


def _of_gated_product(node: ir.Node) -> ScalingPlace | None:
    for factor in node.inputs:
        if factor is None or len(factor.uses()) != 1:
            continue
        place = _of_projection(factor)
        if place is not None:
            return place
    return None


def _of_projection(value: ir.Value) -> ScalingPlace | None:
    """Returns the matrix that a value is a product with, if the value is one, or a half of one."""
    node, first = value.producer(), 0
    if node is not None and node.op_type == "Split":
        before = node.inputs[0]
        if before is None or len(before.uses()) != 1 or value.shape is None or not isinstance(value.shape[-1], int):
            return None
        first = node.outputs.index(value) * value.shape[-1]
        node = before.producer()
    if node is None or node.op_type != "MatMul":
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or len(weight.uses()) != 1:
        return None
    return ScalingPlace(((node, 1),), first)
