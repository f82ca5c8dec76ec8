"""Skip sets whose hidden states stay closest to the full model's at each cost, by dynamic programming.

The programme goes through the sublayers in the model's order. After each one it keeps one set per level of
cost so far: the set whose residual stream has the largest mean cosine similarity to the full model's. Costs
come from the latency table. Sources: KnapSpec (arXiv 2602.20217) and CLaSp (arXiv 2505.24196).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import Bits, skips_some
from sstool.search.sources.sublayer_engines import EmbeddingEngine, SublayerEngine
from sstool.search.texts.make import CalibrationText

LEVELS: Final = 20
"""Number of levels of cost; one set is kept for each."""
_POSITIONS: Final = 64
"""Most positions of the text whose hidden states are compared."""
_PARTS: Final = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Costs, as shares of all sublayers' cost, at which sets of the front become candidates."""


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """One set of the front of cost and similarity.

    Attributes:
        bits: skip set.
        cost: cost of the sublayers that are kept, as a share of all sublayers' cost.
        cosine: mean cosine similarity of the last hidden states to the full model's.
    """

    bits: Bits
    cost: float
    cosine: float


def cosine_front(
    builder: DraftBuilder, text: CalibrationText, shares: NDArray[np.float64], on_sublayer: Callable[[int, int], None]
) -> list[FrontPoint]:
    """Returns the best set of each level of cost that can be reached, cheapest first, measured on one text.

    Args:
        builder: draft builder of the artifact.
        text: calibration text; its last positions are used.
        shares: float64[2 * num_layers], seconds that each sublayer adds to a draft step, in the order of
            `space.Bits`.
        on_sublayer: called before each sublayer with the number of sublayers done and their number in all.

    Raises:
        UnsupportedModelError: if a sublayer cannot be run alone.
    """
    num_layers = builder.num_layers
    ids = np.array([(*text.prompt, *text.tokens)[-_POSITIONS:]], dtype=np.int64)
    full = EmbeddingEngine(builder).run(ids)
    # One row per set: its skipped sublayers, its cost and its residual stream. The first set skips nothing
    # and costs nothing.
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
    return sorted((p for p in points if skips_some(p.bits)), key=lambda p: p.cost)


def front_sets(front: Sequence[FrontPoint]) -> list[Bits]:
    """Returns the sets of a front that become candidates: those with the costs closest to `_PARTS`."""
    chosen = [min(front, key=lambda p: abs(p.cost - part)).bits for part in _PARTS] if front else []
    return list(dict.fromkeys(chosen))


def _in_order(num_layers: int) -> list[int]:
    """Returns the indices of the sublayers in `space.Bits`, in the order in which the model runs them."""
    return [place for layer in range(num_layers) for place in (layer, num_layers + layer)]


def _best_of_levels(levels: NDArray[np.float64], cosines: NDArray[np.float64]) -> list[int]:
    """Returns, for each level of cost, the row with the largest cosine."""
    best: dict[int, int] = {}
    for row, level in enumerate(np.floor(levels + 1e-9).astype(int)):
        if int(level) not in best or cosines[row] > cosines[best[int(level)]]:
            best[int(level)] = row
    return [best[level] for level in sorted(best)]


def _cosines(streams: NDArray[np.float32], full: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the cosine similarity of each stream to the full model's, averaged over positions; float64[B].

    Args:
        streams: float32[B, S, hidden].
        full: float32[1, S, hidden], the full model's stream.
    """
    products = np.einsum("bsh,osh->bs", streams, full, dtype=np.float64)
    norms = np.linalg.norm(streams, axis=-1) * np.linalg.norm(full, axis=-1)
    means: NDArray[np.float64] = (products / np.maximum(norms, 1e-20)).mean(axis=-1)
    return means
