"""What is chosen for the quantization of one model, and the graph that it gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sstool.graph.passes.integer_products import IntegerMatrix, IntegerProductsPass
from sstool.graph.passes.scale_channels import ScaleChannelsPass
from sstool.graph.products import Product, product_groups, products_of
from sstool.graph.sequential import run_passes
from sstool.graph.sublayers import Sublayer
from sstool.quantize.matrices import SHRINKINGS, column_scales, rounded
from sstool.quantize.smoothing import choose_factors
from sstool.quantize.statistics import InputStatistics

FULL_LEVELS: Final = 127
SAFE_LEVELS: Final = 64
"""Largest weight of which two, times the largest activation each, have a sum that fits into 16 bits."""

Part = Sublayer | None
"""A sublayer, or None for the LM head."""


@dataclass(frozen=True, kw_only=True)
class QuantizationPlan:
    """Factors and scales of a model's products.

    Attributes:
        levels: largest integer of a weight.
        factors: factors of smoothing, by the name of a group of products.
        scales: scales of the columns of each matrix, after smoothing, by the name of its product.
        kept: parts that stay in fp32.
    """

    levels: int
    factors: Mapping[str, NDArray[np.float32]]
    scales: Mapping[str, NDArray[np.float32]]
    kept: frozenset[Part] = frozenset()

    def keeping(self, kept: Collection[Part]) -> QuantizationPlan:
        """Returns the same plan with other parts in fp32."""
        return replace(self, kept=frozenset(kept))

    def apply(self, model: ir.Model, only: Collection[Part] | None = None) -> ir.Model:
        """Returns the quantized graph; `model` is changed in place, and its new weights stay lazy.

        Args:
            model: fp32 graph of the graph contract.
            only: parts that are quantized; None for all but the kept ones.
        """
        parts = {group.sublayer for group in product_groups(model.graph)} - self.kept if only is None else set(only)
        groups = [group for group in product_groups(model.graph) if group.sublayer in parts]
        factors = {group.name: self.factors[group.name] for group in groups if group.name in self.factors}
        smooth = run_passes(model, ScaleChannelsPass(factors)) if factors else model
        groups = [group for group in product_groups(smooth.graph) if group.sublayer in parts]
        return run_passes(smooth, IntegerProductsPass({product.name: self._matrix(product) for product in products_of(groups)}))

    def _matrix(self, product: Product) -> IntegerMatrix:
        scales = self.scales[product.name]
        read = product.matrix
        name = f"{product.name}.int8"
        # The node is gone when the tensor is read, but not the weight that `read` refers to.
        lazy = ir.LazyTensor(
            lambda: ir.tensor(rounded(read(), scales, levels=self.levels), name=name),
            dtype=ir.DataType.INT8,
            shape=ir.Shape(product.shape),
            name=name,
        )
        return IntegerMatrix(lazy, scales)


def make_plan(
    base: ir.Model,
    statistics: Mapping[str, InputStatistics],
    *,
    levels: int = FULL_LEVELS,
    smooth: bool = True,
    clip: bool = True,
    on_group: Callable[[int, int], None] = lambda _done, _total: None,
) -> QuantizationPlan:
    """Returns the plan for a model.

    Args:
        base: its fp32 graph, which stays as it is.
        statistics: the activations that enter each group of products.
        levels: largest integer of a weight.
        smooth: whether large channels of activations are moved into the weights.
        clip: whether scales may clip the largest weights.
        on_group: called before each group of products with the number of groups done and their number in all.
    """
    groups = product_groups(base.graph)
    factors = choose_factors(groups, statistics, levels=levels) if smooth else {}
    model = run_passes(base.clone(), ScaleChannelsPass(factors)) if factors else base
    scales = {}
    groups = product_groups(model.graph)
    for number, group in enumerate(groups):
        on_group(number, len(groups))
        factor = factors.get(group.name)
        square = statistics[group.name].mean_square
        importance = square if factor is None else (square / np.square(factor)).astype(np.float32)
        for product in group.products:
            candidates = SHRINKINGS if clip else (1.0,)
            scales[product.name] = column_scales(product.matrix(), importance, levels=levels, shrinkings=candidates)
    return QuantizationPlan(levels=levels, factors=factors, scales=scales)
