"""What is chosen for the quantization of one model, and the graph that it gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sstool.graph.passes.block_products import INTEGER_ACTIVATIONS, BlockMatrix, BlockProductsPass
from sstool.graph.passes.integer_products import IntegerMatrix, IntegerProductsPass
from sstool.graph.passes.scale_channels import ScaleChannelsPass
from sstool.graph.products import product_groups, products_of
from sstool.graph.sequential import run_passes
from sstool.graph.sublayers import Sublayer
from sstool.quantize.formats.base import QuantizedWeights, WeightFormat
from sstool.quantize.formats.int8_columns import SAFE_LEVELS, ColumnScales
from sstool.quantize.smoothing import choose_factors
from sstool.quantize.statistics import InputStatistics

Part = Sublayer | None
"""A sublayer, or None for the LM head."""


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """What is chosen for the products of one input.

    Attributes:
        weights: scales of each matrix, after smoothing, by the name of its product; products that are not
            named stay in fp32.
        factor: factors of smoothing, float32[rows]; None for none.
    """

    weights: Mapping[str, QuantizedWeights]
    factor: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizationPlan:
    """What is chosen for a model.

    Attributes:
        groups: by the name of a group of products; groups that are not named stay in fp32.
        kept: parts that stay in fp32.
    """

    groups: Mapping[str, GroupPlan]
    kept: frozenset[Part] = frozenset()

    def keeping(self, kept: Collection[Part]) -> QuantizationPlan:
        """Returns the same plan with other parts in fp32."""
        return replace(self, kept=frozenset(kept))

    def with_groups(self, groups: Mapping[str, GroupPlan]) -> QuantizationPlan:
        """Returns the plan with other choices for some groups, which must cover whole parts."""
        return replace(self, groups={**self.groups, **groups})

    @property
    def needs_vnni(self) -> bool:
        """Whether products are exact only on processors with VNNI or AMX."""
        weights = [found for group in self.groups.values() for found in group.weights.values()]
        return any(isinstance(found, ColumnScales) and found.levels > SAFE_LEVELS for found in weights)

    def apply(self, model: ir.Model, only: Collection[Part] | None = None, *, accuracy_level: int = INTEGER_ACTIVATIONS) -> ir.Model:
        """Returns the quantized graph; `model` is changed in place, and its new weights stay lazy.

        Args:
            model: fp32 graph of the graph contract.
            only: parts that are quantized; None for all but the kept ones.
            accuracy_level: accuracy level of products in 4 bits.
        """
        parts = {group.sublayer for group in product_groups(model.graph)} - self.kept if only is None else set(only)
        names = {group.name for group in product_groups(model.graph) if group.sublayer in parts}
        chosen = {name: group for name, group in self.groups.items() if name in names}
        factors = {name: group.factor for name, group in chosen.items() if group.factor is not None}
        smooth = run_passes(model, ScaleChannelsPass(factors)) if factors else model
        weights = {name: found for group in chosen.values() for name, found in group.weights.items()}
        matrices = {p.name: weights[p.name].matrix(p) for p in products_of(product_groups(smooth.graph)) if p.name in weights}
        columns = {name: matrix for name, matrix in matrices.items() if isinstance(matrix, IntegerMatrix)}
        blocks = {name: matrix for name, matrix in matrices.items() if isinstance(matrix, BlockMatrix)}
        return run_passes(smooth, IntegerProductsPass(columns), BlockProductsPass(blocks, accuracy_level=accuracy_level))


def make_plan(
    base: ir.Model,
    statistics: Mapping[str, InputStatistics],
    chosen: WeightFormat,
    *,
    only: Collection[Part] | None = None,
    smooth: bool = True,
    clip: bool = True,
    on_group: Callable[[int, int], None] = lambda _done, _total: None,
) -> QuantizationPlan:
    """Returns the plan for a model.

    Args:
        base: its fp32 graph, which stays as it is.
        statistics: the activations that enter each group of products.
        chosen: format of the weights.
        only: parts that the plan is for; None for all.
        smooth: whether large channels of activations are moved into the weights.
        clip: whether scales may clip the largest weights.
        on_group: called before each group of products with the number of groups done and their number in all.
    """
    groups = [group for group in product_groups(base.graph) if only is None or group.sublayer in only]
    factors = choose_factors(groups, statistics, chosen) if smooth else {}
    model = run_passes(base.clone(), ScaleChannelsPass(factors)) if factors else base
    names = {group.name for group in groups}
    groups = [group for group in product_groups(model.graph) if group.name in names]
    plans = {}
    for number, group in enumerate(groups):
        on_group(number, len(groups))
        factor = factors.get(group.name)
        square = statistics[group.name].mean_square
        importance = square if factor is None else (square / np.square(factor)).astype(np.float32)
        candidates = chosen.clipping if clip else (1.0,)
        weights = {product.name: chosen.choose(product.matrix(), importance, candidates) for product in group.products}
        plans[group.name] = GroupPlan(weights=weights, factor=factor)
    return QuantizationPlan(groups=plans)
