"""The first candidates of a search: every skip set that there is a reason to try before Ax suggests any."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from ssruntime.artifact import SkipSet
from sstool.search.clock import Clock
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import Bits, bits_of
from sstool.search.log.records import Trial, best_of
from sstool.search.log.write import SearchWriter
from sstool.search.sources.dynamic_programme import LEVELS, cosine_front, front_sets
from sstool.search.sources.leave_one_out import cut, cuts, measure_sensitivity, sensitivity_order
from sstool.search.sources.patterns import default_start, every_other, middle_blocks
from sstool.search.speed_model.costs import CostModel
from sstool.search.texts.make import CachedText

T = TypeVar("T")

logger = logging.getLogger(__name__)

_WARM_SHARE: Final = 0.12
"""Part of the budget that finding one kind of warm start may take."""
_REFINED: Final = 0.05
"""Distance from the best cut at which two more are tried, as a part of the sublayers."""
_INFLUENCE_PASSES: Final = 8
"""Passes that the leave-one-out order takes for each sublayer, about."""


class Trials(Protocol):
    """What runs candidates and knows when there is no time for another."""

    def is_over(self) -> bool:
        """Returns whether there is no room, or no time, for another trial."""

    def consider(self, source: str, sets: Iterable[Bits]) -> list[Trial]:
        """Runs the sets that were not run yet, as long as there is room; returns the trials of all that were ever run."""


@dataclass(frozen=True, kw_only=True)
class WarmStarts:
    """Runs the warm starts of one search.

    Attributes:
        builder: of the candidates' engines.
        texts: calibration texts.
        costs: the speed model.
        clock: of the search.
        writer: keeps the leave-one-out measurements, and knows those of an interrupted run.
        tell: returns a progress function for a part of the work.
    """

    builder: DraftBuilder
    texts: Sequence[CachedText]
    costs: CostModel
    clock: Clock
    writer: SearchWriter
    tell: Callable[[str], Callable[[int, int], None]]

    def run(self, trials: Trials, starts: Sequence[tuple[str, SkipSet]]) -> None:
        """Runs the given skip sets, then patterns, then points of the dynamic programme, then cuts of the leave-one-out order.

        The last two are left out where finding them takes too much of the budget.
        """
        num_layers = self.builder.num_layers
        for source, skip in starts:
            trials.consider(source, [bits_of(skip, num_layers)])
        trials.consider("every-other", [default_start(num_layers), *every_other(num_layers)])
        trials.consider("block", middle_blocks(num_layers))
        verify = self.costs.verify(len(self.texts[0].text.prompt))[-1]
        if self.clock.affords(LEVELS * 4 * verify, _WARM_SHARE) and not trials.is_over():
            trials.consider("dynamic-programme", self._front())
        if self.clock.affords(2 * num_layers * _INFLUENCE_PASSES * verify, _WARM_SHARE) and not trials.is_over():
            self._leave_one_out(trials)

    def _front(self) -> list[Bits]:
        text = self.texts[0].text
        with self.clock.part("dynamic_programme"):
            shares, tell = self.costs.shares(len(text.prompt)), self.tell("following hidden states")
            front = _optional("points of the dynamic programme", lambda: cosine_front(self.builder, text, shares, tell))
        return [] if front is None else front_sets(front)

    def _leave_one_out(self, trials: Trials) -> None:
        sensitivity = None if self.writer.earlier is None else self.writer.earlier.sensitivity
        if sensitivity is None:
            with self.clock.part("influence"):
                tell = self.tell("leaving out sublayers one by one")
                sensitivity = _optional("the leave-one-out order", lambda: measure_sensitivity(self.builder, self.texts, tell))
            if sensitivity is not None:
                self.writer.write(sensitivity)
        if sensitivity is None:
            return
        order = sensitivity_order(sensitivity)
        best = best_of(trials.consider("leave-one-out", cuts(order)), 1)
        if best:
            part = len((*best[0].skip.attention, *best[0].skip.mlp)) / len(order)
            trials.consider("leave-one-out", [cut(order, part - _REFINED), cut(order, part + _REFINED)])


def _optional(name: str, find: Callable[[], T]) -> T | None:
    """Returns what `find` finds; None, with a warning, where it fails: some models have no such warm starts."""
    try:
        return find()
    except Exception as err:  # noqa: BLE001 - ONNX Runtime's exceptions share no base
        logger.warning("the search goes on without %s: %s", name, " ".join(str(err).split()))
        return None
