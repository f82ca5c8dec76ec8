"""Measures the costs of passes, in the order in which decoding runs them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ssruntime.backends.base import Backend, Pass, PassKind, Slot
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.planning.costs import PassCosts, RoundCosts, between


class _Grid(NamedTuple):
    """What is measured.

    Attributes:
        contexts: a usual context, and one at which attention is a good part of a pass.
        lengths: query lengths at the usual context; passes between and beyond them lie on a line.
        far_lengths: the same at the other context.
    """

    contexts: tuple[int, int]
    lengths: tuple[int, ...]
    far_lengths: tuple[int, ...]


_ALONE: Final = _Grid((64, 1536), (1, 2, 3, 4, 6, 8, 12, 16), (1, 4, 16))
_SHARED: Final = _Grid((64, 512), (1, 2, 4), (1, 2))
"""For passes that several sequences share, which seldom draft longer."""
_DRAFT_STEPS: Final = 2
"""Draft steps before each verify pass: the first one finds the draft's weights displaced from the caches."""
_LEAST_TURNS: Final = 1
LEAST_SECONDS: Final = 1e-9
"""Least time that a pass may seem to take: what is divided by it stays finite."""
_MOST_TURNS: Final = 7
_SECONDS: Final = 0.8
"""Seconds at one context after which no turn begins, once the least number of turns is done."""


_STEADY: Final = 1.25
"""Largest mean ratio of the median time of a pass to its least time on a machine that does nothing else."""


_LEAST_WORK: Final = 0.8
"""Least processor time that a pass gets on such a machine, as a fraction of that of all its threads.

They wait for each other without sleeping, so less means that other work had a processor."""


@dataclass(slots=True)
class _Load:
    """What shows whether other work slowed the passes.

    Attributes:
        spreads: for passes of each kind, the median time over the least time.
        worked: processor seconds of this process during passes.
        passed: seconds of these passes.
    """

    spreads: list[float] = field(default_factory=list)
    worked: float = 0.0
    passed: float = 0.0

    def is_little(self, threads: int | None) -> bool:
        """Returns whether passes that keep this many threads busy were slowed little."""
        works = threads is None or self.worked >= _LEAST_WORK * threads * self.passed
        return works and statistics.fmean(self.spreads) <= _STEADY


class MeasuredCosts(NamedTuple):
    """The costs of passes, and whether the machine was quiet enough to keep them."""

    costs: PassCosts
    is_steady: bool


def measure_costs(backend: Backend, slots: Sequence[Slot], *, has_draft: bool, threads: int | None = None) -> MeasuredCosts:
    """Returns the costs of passes that sequences share; what the slots' KV caches held is lost.

    Args:
        backend: backend of the slots.
        slots: slots that no sequence uses, one for each sequence; at least one.
        has_draft: whether the slots have a draft engine.
        threads: threads of this process that a pass keeps busy; None if it runs on another device.
    """
    grid, first = _ALONE if len(slots) == 1 else _SHARED, slots[0]
    room = first.max_context - MAX_QUERY_LENGTH - 1
    contexts = sorted({max(0, min(context, room)) for context in grid.contexts})
    most = min(MAX_QUERY_LENGTH, first.max_context - contexts[0])
    found, load = list[RoundCosts](), _Load()

    def run(wanted: Pass) -> None:
        backend.run([(slot, wanted) for slot in slots])

    for slot in slots:
        slot.touch(contexts[-1])
    try:
        for context in contexts:
            lengths = grid.lengths if context == contexts[0] else grid.far_lengths
            found.append(_measure(run, first, context, [n for n in lengths if n <= most], load, has_draft=has_draft))
    finally:
        for slot in slots:
            slot.trim(everything=True)
    near = found[0]
    costs = PassCosts(
        contexts=tuple(contexts),
        verify=tuple(_shaped(near.verify, far.verify) for far in found),
        drafted=tuple(_shaped(near.drafted, far.drafted) for far in found),
        draft=tuple(far.draft for far in found),
    )
    return MeasuredCosts(costs, load.is_little(threads))


def _measure(run: Callable[[Pass], object], slot: Slot, context: int, lengths: list[int], load: _Load, *, has_draft: bool) -> RoundCosts:
    """Returns the median seconds of passes at one context.

    Args:
        run: runs a pass.
        slot: slot that counts its seconds.
        context: number of tokens before the passes.
        lengths: query lengths to measure, ascending.
        load: gets what else the passes show.
        has_draft: whether there is a draft engine.
    """
    alone: dict[int, list[float]] = {length: [] for length in lengths}
    drafted: dict[int, list[float]] = {length: [] for length in lengths}
    steps: list[float] = []
    begun = 0.0
    for turn in range(_MOST_TURNS + 1):
        if turn == 1:  # the turn before opened and bound everything
            begun = time.perf_counter()
        if turn > _LEAST_TURNS and time.perf_counter() - begun > _SECONDS:
            break
        for length in lengths:
            seconds = _timed(run, slot, "verify", length, context, load)
            alone[length] += [seconds] if turn else []
        for length in lengths if has_draft else ():
            seconds = sum(_timed(run, slot, "draft", 1, context + step, load) for step in range(_DRAFT_STEPS)) / _DRAFT_STEPS
            steps += [seconds] if turn else []
            seconds = _timed(run, slot, "verify", length, context, load)
            drafted[length] += [seconds] if turn else []
    load.spreads += [statistics.median(times) / min(times) for times in alone.values()]
    verify = between(lengths, [statistics.median(times) for times in alone.values()])
    if not has_draft:
        return RoundCosts(verify, verify, 0.0)
    return RoundCosts(verify, between(lengths, [statistics.median(times) for times in drafted.values()]), statistics.median(steps))


def _timed(run: Callable[[Pass], object], slot: Slot, kind: PassKind, length: int, context: int, load: _Load) -> float:
    before, worked, begun = slot.engine_seconds, time.process_time(), time.perf_counter()
    run(Pass(kind, (0,) * length, min(context, slot.max_context - length)))
    load.worked += time.process_time() - worked
    load.passed += time.perf_counter() - begun
    return max(slot.engine_seconds - before, LEAST_SECONDS)


def _shaped(near: tuple[float, ...], far: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the seconds at a far context, where fewer lengths are measured, with the near one's steps."""
    return tuple(far[0] + max(far[row] - far[0], near[row] - near[0]) for row in range(len(near)))
