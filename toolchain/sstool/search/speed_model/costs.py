"""The model of speed: what decoding takes by a latency table, for any skip set, between the contexts that were measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sstool.search.drafts.space import Bits
from sstool.search.log.records import LatencyTable


@dataclass(frozen=True, slots=True)
class DraftCost:
    """Seconds of a draft's steps.

    Attributes:
        first: of the step after a verify pass, which finds nothing of the draft in the processor's caches.
        later: of each further step.
    """

    first: float
    later: float

    def seconds(self, proposed: int, drafts: int = 1) -> float:
        """Returns the seconds of proposing so many tokens, in so many drafts of one token or more."""
        return drafts * self.first + (proposed - drafts) * self.later if proposed else 0.0


class CostModel:
    """Seconds of drafting and of verifying, from a table, by context length."""

    def __init__(self, table: LatencyTable) -> None:
        self._rows = table.rows
        self._contexts = np.array([row.context for row in table.rows], dtype=np.float64)
        self._verify = np.array([row.verify for row in table.rows])
        self._base = np.array([row.draft_base for row in table.rows])
        self._parts = np.array([[*row.attention, *row.mlp] for row in table.rows])

    def verify(self, context: float) -> list[float]:
        """Returns the seconds of verify passes; at index k, one that checks k proposals."""
        return [float(v) for v in self._at(self._verify, context)]

    def draft(self, bits: Bits, context: float) -> DraftCost:
        """Returns the seconds of a draft's steps."""
        sizes = self._base + self._parts @ (1 - np.array(bits))
        by_size = zip(sizes, self._rows, strict=True)
        steps = [[size * np.interp(size, row.sizes, part) for part in (row.first, row.later)] for size, row in by_size]
        return DraftCost(*(float(s) for s in self._at(np.array(steps), context)))

    def shares(self, context: float) -> NDArray[np.float64]:
        """Returns what each sublayer adds to the size of a draft, float64[2 * num_layers] seconds."""
        return self._at(self._parts, context)

    def _at(self, values: NDArray[np.float64], context: float) -> NDArray[np.float64]:
        if len(self._contexts) == 1:
            only: NDArray[np.float64] = values[0]
            return only
        where = np.interp(context, self._contexts, np.arange(len(self._contexts)))
        low = min(int(where), len(self._contexts) - 2)
        between: NDArray[np.float64] = values[low] + (where - low) * (values[low + 1] - values[low])
        return between
