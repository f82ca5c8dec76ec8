"""The driver for one sequence on one KV cache."""

from __future__ import annotations

import time
from collections import abc
from collections.abc import Iterator
from typing import Final

from ssruntime.backends.base import Slot
from ssruntime.planning.batch_costs import BatchCosts
from ssruntime.sequence import Sequence

RECORDED: Final = 3
"""One of this many rounds is recorded, enough to follow the costs.

So is each round that has draft steps where the one before it had none, or the other way round: these are
rare, and only they show what drafting costs."""
TIMEOUT: Final = "timeout"
"""Finish reason of a sequence whose deadline passed."""


def decode(
    sequence: Sequence, slot: Slot, *, costs: BatchCosts | None = None, deadline: float | None = None
) -> Iterator[abc.Sequence[int]]:
    """Yields the tokens of a sequence as they are committed, the last ones after its `finish_reason` is set.

    The statistics do not include the time that the consumer takes between two steps.

    Args:
        sequence: sequence at its beginning.
        slot: KV cache that no other sequence uses meanwhile.
        costs: record of what passes cost, which gets some of these; None for none.
        deadline: time of `time.monotonic` from which on no pass begins; the tokens that were committed by
            then stay. None sets no limit.
    """
    stats, is_first = sequence.stats, True
    rounds, steps, recorded, was_drafted = 0, 0, 0.0, False
    if costs is not None:
        costs.sequences = 1
    run, commit, clock = slot.run, sequence.commit, time.perf_counter
    begun = clock()
    try:
        while (wanted := sequence.next_pass) is not None:
            if deadline is not None and time.monotonic() >= deadline:
                sequence.cancel(TIMEOUT)
                yield ()
                return
            new = commit(run(wanted))
            if costs is not None:
                kind, trunk, start, _ = wanted
                if kind == "draft":
                    steps += 1
                else:
                    rounds += 1
                    drafted = steps > 0
                    if kind == "verify" and (drafted is not was_drafted or not rounds % RECORDED):
                        costs.record(len(trunk), steps, start, slot.engine_seconds - recorded)
                    was_drafted = drafted
                    steps, recorded = 0, slot.engine_seconds
            if not new:
                continue
            seconds = clock() - begun
            if is_first:
                is_first, stats.prefill_s, slot.engine_seconds = False, seconds, 0.0
                recorded = 0.0
            else:
                stats.decode_s += seconds
                stats.engine_s = slot.engine_seconds
            yield new
            begun = clock()
    finally:
        sequence.close()
