"""The speed model: seconds of draft steps and verify passes for any skip set, from a latency table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sstool.search.drafts.space import Bits
from sstool.search.log.records import LatencyTable


@dataclass(frozen=True, slots=True)
class DraftCost:
    """Seconds of the steps of one draft engine.

    Attributes:
        first: seconds of the first step after a verify pass, which has displaced the draft's weights from the
            processor's caches.
        later: seconds of each further step.
    """

    first: float
    later: float

    def seconds(self, proposed: int, drafts: int = 1) -> float:
        """Returns the seconds of proposing `proposed` tokens in `drafts` non-empty draft sequences."""
        return drafts * self.first + (proposed - drafts) * self.later if proposed else 0.0


class CostModel:
    """Seconds of draft steps and verify passes by context length, from a latency table."""

    def __init__(self, table: LatencyTable) -> None:
        self._rows = table.rows
        self._contexts = np.array([row.context for row in table.rows], dtype=np.float64)
        self._verify = np.array([row.verify for row in table.rows])
        self._base = np.array([row.draft_base for row in table.rows])
        self._parts = np.array([[*row.attention, *row.mlp] for row in table.rows])

    def verify(self, context: float) -> list[float]:
        """Returns the seconds of verify passes at a context length; index k verifies k proposed tokens."""
        return [float(v) for v in self._at(self._verify, context)]

    def draft(self, bits: Bits, context: float) -> DraftCost:
        """Returns the seconds of the steps of a skip set's draft at a context length."""
        sizes = self._base + self._parts @ (1 - np.array(bits))
        by_size = zip(sizes, self._rows, strict=True)
        steps = [[size * np.interp(size, row.sizes, part) for part in (row.first, row.later)] for size, row in by_size]
        return DraftCost(*(float(s) for s in self._at(np.array(steps), context)))

    def shares(self, context: float) -> NDArray[np.float64]:
        """Returns the seconds that each sublayer adds to a draft's size, float64[2 * num_layers]."""
        return self._at(self._parts, context)

    def _at(self, values: NDArray[np.float64], context: float) -> NDArray[np.float64]:
        """Returns the row of `values` at a context length, interpolated and never extrapolated."""
        if len(self._contexts) == 1:
            only: NDArray[np.float64] = values[0]
            return only
        where = np.interp(context, self._contexts, np.arange(len(self._contexts)))
        low = min(int(where), len(self._contexts) - 2)
        between: NDArray[np.float64] = values[low] + (where - low) * (values[low + 1] - values[low])
        return between
