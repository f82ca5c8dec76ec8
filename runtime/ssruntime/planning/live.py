"""The costs of passes on a running engine: a measured table, corrected by the rounds that requests run."""

from __future__ import annotations

import math
from typing import Final

from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.planning.costs import PassCosts, RoundCosts

BUCKET: Final = 256
"""Size of the ranges that context lengths are grouped in; passes within a range count as equally slow."""
_RATE: Final = 1 / 64
"""Weight of one round in the running mean of a correction."""
_OUTLIER: Final = 3.0
"""A round's time counts as at most this multiple of what is expected: interruptions come by chance."""
_OWN: Final = 8
"""Number of passes of one query length from which on their own correction outweighs that of all."""
_NOTABLE: Final = 0.05
"""Change of a correction, in nats, from which on plans are made again."""
_CHECK: Final = 32
"""Number of rounds after which changes are looked for."""


class LiveCosts:
    """The costs that all requests of an engine share.

    There is one correction for rounds with draft steps, and one for each query length of rounds without. All
    passes of a round with draft steps get the same one: only the time of the whole round is compared.
    """

    def __init__(self, table: PassCosts, *, learns: bool) -> None:
        self.version = 0
        """Changes when the costs have changed notably."""
        self._table = table
        self._learns = learns
        self._measured: dict[int, RoundCosts] = {}
        self._known: dict[int, RoundCosts] = {}
        self._with_draft, self._without = 0.0, 0.0
        self._verify, self._counts = [0.0] * MAX_QUERY_LENGTH, [0] * MAX_QUERY_LENGTH
        self._planned = self._corrections()
        self._rounds = 0

    def at(self, context: int) -> RoundCosts:
        """Returns the costs of the passes of a round at a context."""
        bucket = context // BUCKET
        known = self._known  # another thread may begin a new one, which must not get the costs of before
        found = known.get(bucket)
        if found is None:
            found = known[bucket] = self._corrected(self._uncorrected(bucket))
        return found

    def record(self, rows: int, steps: int, context: int, seconds: float) -> None:
        """Records what a round took.

        Several threads may call this at the same time: a correction that is lost does no harm.

        Args:
            rows: rows of its verify pass, without those of side branches: their cost becomes a part of the
                correction.
            steps: number of draft steps.
            context: number of tokens before it.
            seconds: seconds of all its passes.
        """
        if not self._learns:
            return
        ratio = seconds / self._uncorrected(context // BUCKET).seconds(rows, steps)
        error = math.log(min(max(ratio, 1 / _OUTLIER), _OUTLIER))
        if steps:
            self._with_draft += _RATE * (error - self._with_draft)
        else:
            self._without += _RATE * (error - self._without)
            self._counts[rows - 1] += 1
            self._verify[rows - 1] += max(_RATE, 1 / self._counts[rows - 1]) * (error - self._verify[rows - 1])
        self._rounds += 1
        if self._rounds % _CHECK == 0:
            self._notice()

    def _uncorrected(self, bucket: int) -> RoundCosts:
        found = self._measured.get(bucket)
        if found is None:
            found = self._measured[bucket] = self._table.at(bucket * BUCKET + BUCKET // 2)
        return found

    def _notice(self) -> None:
        now = self._corrections()
        if max(abs(a - b) for a, b in zip(now, self._planned, strict=True)) > _NOTABLE:
            self._planned = now
            self._known = {}
            self.version += 1

    def _corrections(self) -> list[float]:
        """Returns the corrections of rounds without draft steps by rows, then of the others, in nats."""
        own = [(count * mean + _OWN * self._without) / (count + _OWN) for mean, count in zip(self._verify, self._counts, strict=True)]
        return [*own, self._with_draft]

    def _corrected(self, costs: RoundCosts) -> RoundCosts:
        *verify, with_draft = (math.exp(x) for x in self._planned)
        most, corrected = 0.0, []
        for seconds, factor in zip(costs.verify, verify, strict=True):
            most = max(most, seconds * factor)  # more rows are never cheaper
            corrected.append(most)
        return RoundCosts(tuple(corrected), tuple(seconds * with_draft for seconds in costs.drafted), costs.draft * with_draft)
