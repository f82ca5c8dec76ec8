"""The costs of passes: seconds of draft steps and verify passes, by query length and context.

Draft and target share weights. So a verify pass right after draft steps finds some of its weights in the
processor's caches, and is faster than one after another verify pass.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from ssruntime.graph_io import MAX_QUERY_LENGTH

_NOMINAL_ROW: Final = 0.06
"""Cost of one more row in a verify pass, as a fraction of an autoregressive step, until costs are measured.

Weights are read once for all rows, so a row costs little on most machines."""


class RoundCosts(NamedTuple):
    """Seconds of the passes of a round at one context.

    Attributes:
        verify: seconds of verify passes without draft steps before them; index k is a pass of k + 1 rows.
        drafted: the same right after draft steps.
        draft: seconds of a draft step.
    """

    verify: tuple[float, ...]
    drafted: tuple[float, ...]
    draft: float

    def seconds(self, rows: int, steps: int) -> float:
        """Returns the seconds of a verify pass and the draft steps before it."""
        return self.drafted[rows - 1] + steps * self.draft if steps else self.verify[rows - 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class PassCosts:
    """Seconds of passes at some contexts.

    Attributes:
        contexts: numbers of tokens before the pass, in ascending order.
        verify: for each context, the seconds of verify passes of 1 to `MAX_QUERY_LENGTH` rows.
        drafted: the same right after draft steps.
        draft: for each context, the seconds of a draft step; 0 without a draft.
    """

    contexts: tuple[int, ...]
    verify: tuple[tuple[float, ...], ...]
    drafted: tuple[tuple[float, ...], ...]
    draft: tuple[float, ...]

    def at(self, context: int) -> RoundCosts:
        """Returns the costs at a context: on the line through the nearest two, since attention is linear."""
        if len(self.contexts) == 1:
            return RoundCosts(self.verify[0], self.drafted[0], self.draft[0])
        low = min(max(bisect.bisect_right(self.contexts, context) - 1, 0), len(self.contexts) - 2)
        first, second = self.contexts[low : low + 2]
        where = max(context - first, 0) / (second - first)
        near, far = (np.array([*self.verify[n], *self.drafted[n], self.draft[n]]) for n in (low, low + 1))
        *passes, draft = (near + where * np.maximum(far - near, 0)).tolist()
        return RoundCosts(tuple(passes[:MAX_QUERY_LENGTH]), tuple(passes[MAX_QUERY_LENGTH:]), draft)


def nominal_costs(draft_share: float) -> PassCosts:
    """Returns costs in units of an autoregressive step, which depend on no machine.

    Args:
        draft_share: the weights that a draft step reads, as a fraction of all.
    """
    verify = tuple(1.0 + _NOMINAL_ROW * row for row in range(MAX_QUERY_LENGTH))
    return PassCosts(contexts=(0,), verify=(verify,), drafted=(verify,), draft=(draft_share,))


def between(lengths: Sequence[int], seconds: Sequence[float]) -> tuple[float, ...]:
    """Returns the seconds of passes of 1 to `MAX_QUERY_LENGTH` rows from those of some query lengths.

    Longer passes than these lie on the line through the last two.
    """
    rows = np.arange(1, MAX_QUERY_LENGTH + 1)
    # A pass is never dearer than one of more rows: what seems so was interrupted.
    rising = np.minimum.accumulate(np.array(seconds)[::-1])[::-1]
    slope = (rising[-1] - rising[-2]) / (lengths[-1] - lengths[-2]) if len(lengths) > 1 else 0.0
    return tuple((np.interp(rows, lengths, rising) + slope * np.maximum(rows - lengths[-1], 0)).tolist())
