"""The driver for one sequence on one KV cache."""

from __future__ import annotations

import time
from collections import abc
from collections.abc import Iterator
from typing import Final

from ssruntime.backends.base import Slot
from ssruntime.sequence import Sequence

TIMEOUT: Final = "timeout"
"""Finish reason of a sequence whose deadline passed."""


def decode(sequence: Sequence, slot: Slot, *, deadline: float | None = None) -> Iterator[abc.Sequence[int]]:
    """Yields the tokens of a sequence as they are committed, the last ones after its `finish_reason` is set.

    The statistics do not include the time that the consumer takes between two steps.

    Args:
        sequence: sequence at its beginning.
        slot: KV cache that no other sequence uses meanwhile.
        deadline: time of `time.monotonic` from which on no pass begins; the tokens that were committed by
            then stay. None sets no limit.
    """
    stats, is_first = sequence.stats, True
    run, commit, clock = slot.run, sequence.commit, time.perf_counter
    begun = clock()
    try:
        while (wanted := sequence.next_pass) is not None:
            if deadline is not None and time.monotonic() >= deadline:
                sequence.cancel(TIMEOUT)
                yield ()
                return
            new = commit(run(wanted))
            if not new:
                continue
            seconds = clock() - begun
            if is_first:
                is_first, stats.prefill_s, slot.engine_seconds = False, seconds, 0.0
            else:
                stats.decode_s += seconds
                stats.engine_s = slot.engine_seconds
            yield new
            begun = clock()
    finally:
        sequence.close()
