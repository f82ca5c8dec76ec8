"""The speed model: seconds of draft steps and verify passes for any draft, from a latency table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssruntime.planning.costs import PassCosts
from sstool.search.drafts.space import Candidate
from sstool.search.log.records import DraftCosts, LatencyRow, LatencyTable


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

    def verify(self, context: float) -> list[float]:
        """Returns the seconds of verify passes at a context length; index k verifies k proposed tokens."""
        return [float(v) for v in self._at(self._verify, context)]

    def draft(self, candidate: Candidate, context: float) -> DraftCost:
        """Returns the seconds of a draft's steps at a context length.

        The speed model must know int4 weights if the draft has any.
        """
        steps = [_steps(row, candidate) for row in self._rows]
        return DraftCost(*(float(s) for s in self._at(np.array(steps), context)))

    def pass_costs(self, candidate: Candidate) -> PassCosts:
        """Returns the costs that a planner needs for a draft."""
        verify = tuple(row.verify for row in self._rows)
        steps = (_steps(row, candidate) for row in self._rows)
        return PassCosts(
            contexts=tuple(row.context for row in self._rows), verify=verify, drafted=verify, draft=tuple((a + b) / 2 for a, b in steps)
        )

    def shares(self, context: float) -> NDArray[np.float64]:
        """Returns the seconds of each sublayer in a draft over shared weights, float64[2 * num_layers]."""
        return self._at(np.array([_parts(row.draft) for row in self._rows]), context)

    def _at(self, values: NDArray[np.float64], context: float) -> NDArray[np.float64]:
        """Returns the row of `values` at a context length, interpolated and never extrapolated."""
        if len(self._contexts) == 1:
            only: NDArray[np.float64] = values[0]
            return only
        where = np.interp(context, self._contexts, np.arange(len(self._contexts)))
        low = min(int(where), len(self._contexts) - 2)
        between: NDArray[np.float64] = values[low] + (where - low) * (values[low + 1] - values[low])
        return between


def _steps(row: LatencyRow, candidate: Candidate) -> tuple[float, float]:
    """Returns the seconds of a draft's first step, and of any later one."""
    shared = 1 - np.array(candidate.skipped) - np.array(candidate.int4)
    kinds = [(row.draft, _size(row.draft, shared, has_head=not candidate.int4_head))]
    if candidate.has_own_weights:
        assert row.int4 is not None, "the latency table knows no int4 weights"
        kinds.append((row.int4, _size(row.int4, np.array(candidate.int4), has_head=candidate.int4_head)))
    # The processor's caches hold more of a small draft, so the whole draft's size counts for the factors.
    total = sum(size for _, size in kinds)
    first = sum(size * np.interp(total, costs.sizes, costs.first) for costs, size in kinds)
    return first, sum(size * np.interp(total, costs.sizes, costs.later) for costs, size in kinds)


def _size(costs: DraftCosts, kept: NDArray[np.int64], *, has_head: bool) -> float:
    return has_head * costs.base + float(_parts(costs) @ kept)


def _parts(costs: DraftCosts) -> NDArray[np.float64]:
    return np.array([*costs.attention, *costs.mlp])
