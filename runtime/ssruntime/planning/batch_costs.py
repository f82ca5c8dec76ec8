"""The costs of passes by the number of sequences that share them.

Only passes of one sequence are measured beforehand. A pass over several sequences reads the weights once and
computes as many rows as they have together, so at first it counts as a pass of one sequence over that many
rows; the rounds that requests run correct this for each number of sequences.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.planning.costs import PassCosts, RoundCosts
from ssruntime.planning.live import LiveCosts

_SLOPE_FROM: Final = MAX_QUERY_LENGTH // 2
"""Passes of more than `MAX_QUERY_LENGTH` rows are extrapolated with the cost of a row from here to there."""


class BatchCosts:
    """The costs that all requests of an engine share, for each number of sequences."""

    def __init__(self, table: PassCosts, *, learns: bool) -> None:
        """Takes the costs of passes of one sequence, and whether rounds correct them."""
        self._table = table
        self._learns = learns
        self._known = {1: LiveCosts(table, learns=learns)}
        self._now = self._known[1]
        self._sequences = 1

    @property
    def sequences(self) -> int:
        """The number of sequences that share each pass at present, rounded up to a power of two."""
        return self._sequences

    @sequences.setter
    def sequences(self, count: int) -> None:
        bucket = 1 << max(count - 1, 0).bit_length()
        if bucket != self._sequences:
            found = self._known.get(bucket)
            if found is None:
                found = self._known.setdefault(bucket, LiveCosts(shared_by(self._table, bucket), learns=self._learns))
            self._now, self._sequences = found, bucket

    @property
    def is_shared(self) -> bool:
        """Whether several sequences share each pass."""
        return self._sequences > 1

    @property
    def version(self) -> tuple[int, int]:
        """Changes when the costs have changed notably."""
        return self._sequences, self._now.version

    @property
    def is_stale(self) -> bool:
        """Whether rounds of one kind, with draft steps or without, have not run for long."""
        return self._now.is_stale

    def at(self, context: int) -> RoundCosts:
        """Returns the costs of the passes of a round at a context."""
        return self._now.at(context)

    def record(self, rows: int, steps: int, context: int, seconds: float) -> None:
        """Records what a round took; see `LiveCosts.record`."""
        self._now.record(rows, steps, context, seconds)


def shared_by(table: PassCosts, sequences: int) -> PassCosts:
    """Returns the expected costs of passes that several sequences share."""

    def shared(seconds: tuple[float, ...]) -> tuple[float, ...]:
        slope = (seconds[-1] - seconds[_SLOPE_FROM - 1]) / (len(seconds) - _SLOPE_FROM)
        rows = [sequences * (row + 1) for row in range(len(seconds))]
        return tuple(seconds[n - 1] if n <= len(seconds) else seconds[-1] + (n - len(seconds)) * slope for n in rows)

    verify = tuple(map(shared, table.verify))
    return dataclasses.replace(
        table,
        verify=verify,
        drafted=tuple(map(shared, table.drafted)),
        draft=tuple(step * after[0] / before[0] for step, after, before in zip(table.draft, verify, table.verify, strict=True)),
    )
