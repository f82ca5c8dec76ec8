"""Measures what quantizing each sublayer alone costs, and chooses the sublayers that get more bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ssruntime.artifact import SkipSet
from ssruntime.backends.base import Backend
from sstool.artifact_files.graph_files import serialize
from sstool.graph.lower import lower_draft
from sstool.graph.passes.block_products import INTEGER_ACTIVATIONS
from sstool.graph.products import product_groups
from sstool.quantize.plan import Part, QuantizationPlan
from sstool.quantize.quality import Logits, Quality, compare_quality, engine_logits, logits_of

MOST_TOKENS: Final = 256
"""Tokens of calibration text that each sublayer is measured on."""


def measure_parts(
    backend: Backend, base: ir.Model, plan: QuantizationPlan, texts: Sequence[Sequence[int]], on_part: Callable[[int, int], None]
) -> tuple[Quality, dict[Part, float]]:
    """Returns the quality with everything quantized, and the mean KL divergence of each part quantized alone.

    Args:
        backend: open engines of the fp32 artifact.
        base: its base graph.
        plan: the plan.
        texts: token ids of calibration texts.
        on_part: called before each part with the number of parts done and their number in all.
    """
    some = leading(texts, MOST_TOKENS)
    parts = list(dict.fromkeys(group.sublayer for group in product_groups(base.graph)))
    with engine_logits(backend) as logits:
        known = {tuple(ids): logits(ids) for ids in some}

    def reference(ids: Sequence[int]) -> NDArray[np.float32]:
        return known[tuple(ids)]

    costs = {}
    for number, part in enumerate(parts):
        on_part(number, len(parts) + 1)
        costs[part] = compare_quality(reference, variant(backend, base, plan, [part]), some).mean_kl
    on_part(len(parts), len(parts) + 1)
    return compare_quality(reference, variant(backend, base, plan, parts), some), costs


def variant(
    backend: Backend, base: ir.Model, plan: QuantizationPlan, parts: Sequence[Part], *, accuracy_level: int = INTEGER_ACTIVATIONS
) -> Logits:
    """Returns the logits of the model with some parts quantized, over the fp32 engine's weights."""
    graph = serialize(plan.apply(lower_draft(base, SkipSet()), only=parts, accuracy_level=accuracy_level))
    return logits_of(backend.new_slot(backend.max_context, backend.open_draft(graph, "a quantized variant")), draft=True)


def choose_kept(base: ir.Model, whole: float, costs: Mapping[Part, float], *, aim: float, growth: float, budget: float) -> frozenset[Part]:
    """Returns the parts to give more bits to so that the mean KL divergence comes down to an aim.

    Parts that cost much for their size come first.

    Args:
        base: the fp32 graph.
        whole: mean KL divergence with everything quantized.
        costs: that of each part quantized alone; their differences are taken to add up.
        aim: largest mean KL divergence that is wanted.
        growth: how much a part's weights grow, as a fraction of their quantized size.
        budget: largest growth of all quantized weights, as a fraction of their size.
    """
    sizes: dict[Part, int] = {}
    for group in product_groups(base.graph):
        sizes[group.sublayer] = sizes.get(group.sublayer, 0) + sum(rows * columns for rows, columns in (p.shape for p in group.products))
    room = budget * sum(sizes.values())
    scale = whole / max(sum(costs.values()), 1e-30)
    kept: set[Part] = set()
    for part in sorted(costs, key=lambda p: -costs[p] / sizes[p]):
        if whole <= aim:
            break
        if growth * sizes[part] <= room:
            kept.add(part)
            room -= growth * sizes[part]
            whole -= scale * costs[part]
    return frozenset(kept)


def leading(texts: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """Returns the first texts, the last of them cut, with so many tokens in all."""
    some: list[Sequence[int]] = []
    for ids in texts:
        if tokens < 2:  # a position is compared with the token after it
            break
        some.append(ids[:tokens])
        tokens -= len(some[-1])
    return some
