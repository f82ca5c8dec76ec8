"""The costs of passes by the number of sequences that share them.

Passes of one sequence are always measured beforehand, those of several when an engine warms up. Where they
were not, a pass over several sequences counts as a pass of one sequence over as many rows as they have
together: it reads the weights once. The rounds that requests run correct the costs for each number of
sequences.
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
        self._alone = table
        self.context = 0
        """Mean context of the sequences that share passes, which all of them plan for."""
        self._learns = learns
        self._known = {1: LiveCosts(table, learns=learns)}
        self._measured = {1}
        self._now = self._known[1]
        self._sequences = 1

    @property
    def sequences(self) -> int:
        """The number of sequences that share each pass at present, rounded up to a power of two."""
        return self._sequences

    @sequences.setter
    def sequences(self, count: int) -> None:
        bucket = _bucket(count)
        if bucket != self._sequences:
            found = self._known.get(bucket)
            if found is None:
                found = self._known.setdefault(bucket, LiveCosts(shared_by(self._alone, bucket), learns=self._learns))
            self._now, self._sequences = found, bucket

    def is_measured(self, sequences: int) -> bool:
        """Returns whether the costs of passes that some sequences share were measured, and not estimated."""
        return _bucket(sequences) in self._measured

    def use(self, sequences: int, table: PassCosts) -> None:
        """Replaces the estimated costs of passes that some sequences share by measured ones."""
        bucket = _bucket(sequences)
        self._known[bucket] = LiveCosts(table, learns=self._learns)
        self._measured.add(bucket)
        if bucket == self._sequences:
            self._now = self._known[bucket]

    @property
    def is_shared(self) -> bool:
        """Whether several sequences share each pass."""
        return self._sequences > 1

    @property
    def version(self) -> tuple[int, int, int]:
        """Changes when the costs have changed notably."""
        return self._sequences, len(self._measured), self._now.version

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


def _bucket(sequences: int) -> int:
    """Returns a number of sequences, rounded up to a power of two."""
    return 1 << max(sequences - 1, 0).bit_length()


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
