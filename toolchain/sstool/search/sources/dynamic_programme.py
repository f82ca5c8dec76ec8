"""Skip sets whose hidden states stay nearest to the full model's, at every cost: a dynamic programme over sublayers in their order.

Behind each sublayer it keeps, for each level of cost so far, the set whose residual stream has the largest mean cosine with the full
model's there. Costs are the latency table's. Sources: KnapSpec (arXiv 2602.20217) and CLaSp (arXiv 2505.24196).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import Bits, is_draft
from sstool.search.sources.sublayer_engines import EmbeddingEngine, SublayerEngine
from sstool.search.texts.make import CalibrationText

LEVELS: Final = 20
"""Levels of cost: each a set of its own."""
_POSITIONS: Final = 64
"""Most positions of the text whose hidden states are compared."""
_PARTS: Final = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Costs, as parts of all sublayers', at which the front's sets become candidates."""


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A set of the front.

    Attributes:
        bits: what is skipped.
        cost: of what is kept, as a part of all sublayers' cost.
        cosine: mean cosine of its last hidden states with the full model's.
    """

    bits: Bits
    cost: float
    cosine: float


def cosine_front(
    builder: DraftBuilder, text: CalibrationText, shares: NDArray[np.float64], on_sublayer: Callable[[int, int], None]
) -> list[FrontPoint]:
    """Runs the programme over one text, prompt and continuation.

    Args:
        builder: of the artifact.
        text: the model's own.
        shares: float64[2 * num_layers], seconds that each sublayer adds to a draft step, in the order of `space.Bits`.
        on_sublayer: told how many are done, of how many.

    Returns:
        One set a level of cost that can be had, the cheapest first.

    Raises:
        UnsupportedModelError: if a sublayer cannot be run alone.
    """
    num_layers = builder.num_layers
    ids = np.array([(*text.prompt, *text.tokens)[-_POSITIONS:]], dtype=np.int64)
    full = EmbeddingEngine(builder).run(ids)
    # Row for row: a set's skipped places, its cost, its stream. At first there is one, which skips nothing of nothing.
    skipped: list[tuple[int, ...]] = [()]
    costs, streams = np.zeros(1), full.copy()
    unit = float(shares.sum()) / LEVELS
    for done, place in enumerate(_in_order(num_layers)):
        on_sublayer(done, 2 * num_layers)
        engine = SublayerEngine(builder, place)
        through = engine.run(np.concatenate([full, streams]))
        full, kept = through[:1], through[1:]
        all_skipped = [*skipped, *((*places, place) for places in skipped)]
        all_costs = np.concatenate([costs + shares[place], costs])
        all_streams = np.concatenate([kept, streams])
        chosen = _best_of_levels(all_costs / unit, _cosines(all_streams, full))
        skipped, costs, streams = [all_skipped[n] for n in chosen], all_costs[chosen], all_streams[chosen]
    cosines = _cosines(streams, full)
    total = max(float(shares.sum()), 1e-12)
    points = [
        FrontPoint(tuple(int(n in set(places)) for n in range(2 * num_layers)), float(cost) / total, float(cosine))
        for places, cost, cosine in zip(skipped, costs, cosines, strict=True)
    ]
    return sorted((p for p in points if is_draft(p.bits)), key=lambda p: p.cost)


def front_sets(front: Sequence[FrontPoint]) -> list[Bits]:
    """Returns the sets of the front that become candidates: those nearest to a few costs."""
    chosen = [min(front, key=lambda p: abs(p.cost - part)).bits for part in _PARTS] if front else []
    return list(dict.fromkeys(chosen))


def _in_order(num_layers: int) -> list[int]:
    """Returns the sublayers' places in the order in which a token passes them."""
    return [place for layer in range(num_layers) for place in (layer, num_layers + layer)]


def _best_of_levels(levels: NDArray[np.float64], cosines: NDArray[np.float64]) -> list[int]:
    """Returns, for each level of cost, the row with the largest cosine."""
    best: dict[int, int] = {}
    for row, level in enumerate(np.floor(levels + 1e-9).astype(int)):
        if int(level) not in best or cosines[row] > cosines[best[int(level)]]:
            best[int(level)] = row
    return [best[level] for level in sorted(best)]


def _cosines(streams: NDArray[np.float32], full: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the mean over positions of the cosine of each stream float32[B, S, hidden] with the full model's [1, S, hidden]."""
    products = np.einsum("bsh,osh->bs", streams, full, dtype=np.float64)
    norms = np.linalg.norm(streams, axis=-1) * np.linalg.norm(full, axis=-1)
    resources: NDArray[np.float64] = (products / np.maximum(norms, 1e-20)).mean(axis=-1)
    return resources
