"""The costs of passes on a running engine: a measured table, corrected by the rounds that requests run."""

from __future__ import annotations

import math
from typing import Final

from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.planning.costs import PassCosts, RoundCosts

BUCKET: Final = 256
"""Size of the ranges that context lengths are grouped in; passes within a range count as equally slow."""
_LOAD_RATE: Final = 1 / 4
"""Weight of a round in the running mean of the load, whose noise changes no decision: all passes share it."""
_LOAD_RATE_OF_CHANGE: Final = 1 / 16
"""The same for a round with draft steps after one without, or the other way round."""
_DIFFERENCE_RATE: Final = 1 / 8
"""Least weight of a change of kind in the running mean of the difference."""
_MOST_DIFFERENT: Final = 0.3
"""Largest surprise that counts at a change of kind, in nats: the load may have changed at that moment."""
_STALE: Final = 100
"""Number of recorded rounds without a change of kind after which one of the other kind is worth its time."""
_OWN_RATE: Final = 1 / 64
"""Weight of one round in the running mean of one query length's own correction."""
_OUTLIER: Final = 3.0
"""A round's time counts as at most this multiple of what is expected: interruptions come by chance."""
_OWN: Final = 8
"""Number of passes of one query length from which on their own correction outweighs the lack of one."""
_NOTABLE: Final = 0.05
"""Change of a correction, in nats, from which on plans are made again."""
_CHECK: Final = 32
"""Number of rounds after which changes are looked for."""


class LiveCosts:
    """The costs that all requests of an engine share.

    Every round corrects the *load*, by which all passes are slower than the table says. The *difference* is
    what rounds with draft steps are slower still. Only a change between rounds with and without draft steps
    corrects it: a run of equal rounds cannot tell it from the load. So what was true of one kind under load
    is not believed after it. Verify passes of several rows without draft steps have a correction for each
    query length too.
    """

    def __init__(self, table: PassCosts, *, learns: bool) -> None:
        self.version = 0
        """Changes when the costs have changed notably."""
        self._table = table
        self._learns = learns
        self._measured: dict[int, RoundCosts] = {}
        self._known: dict[int, RoundCosts] = {}
        self._load, self._difference = 0.0, 0.0
        self._changes = self._unchanged = 0
        self._was_drafted: bool | None = None
        self._verify, self._counts = [0.0] * MAX_QUERY_LENGTH, [0] * MAX_QUERY_LENGTH
        self._planned = self._corrections()
        self._rounds = 0

    @property
    def is_stale(self) -> bool:
        """Whether rounds of one kind, with draft steps or without, have not run for long."""
        return self._learns and self._unchanged >= _STALE

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
        drafted = steps > 0
        surprise = error - self._load - (self._difference if drafted else self._own(rows - 1))
        if self._was_drafted in (None, drafted):
            self._load += _LOAD_RATE * surprise
            self._unchanged += 1
        else:
            self._load += _LOAD_RATE_OF_CHANGE * surprise
            self._changes, self._unchanged = self._changes + 1, 0
            weight = max(_DIFFERENCE_RATE, 1 / (1 + self._changes))
            surprise = min(max(surprise, -_MOST_DIFFERENT), _MOST_DIFFERENT)
            self._difference += weight * (surprise if drafted else -surprise)
        self._was_drafted = drafted
        if not drafted and rows > 1:
            count = self._counts[rows - 1] = self._counts[rows - 1] + 1
            self._verify[rows - 1] += max(_OWN_RATE, 1 / count) * (error - self._load - self._verify[rows - 1])
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

    def _own(self, row: int) -> float:
        """Returns the correction of a query length of rounds without draft steps, beside that of all."""
        count = self._counts[row]
        return count / (count + _OWN) * self._verify[row]

    def _corrections(self) -> list[float]:
        """Returns the corrections of rounds without draft steps by rows, then of the others, in nats."""
        return [*(self._load + self._own(row) for row in range(MAX_QUERY_LENGTH)), self._load + self._difference]

    def _corrected(self, costs: RoundCosts) -> RoundCosts:
        *verify, with_draft = (math.exp(x) for x in self._planned)
        most, corrected = 0.0, []
        for seconds, factor in zip(costs.verify, verify, strict=True):
            most = max(most, seconds * factor)  # more rows are never cheaper
            corrected.append(most)
        return RoundCosts(tuple(corrected), tuple(seconds * with_draft for seconds in costs.drafted), costs.draft * with_draft)
