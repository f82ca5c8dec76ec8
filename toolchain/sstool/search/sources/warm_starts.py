"""The warm starts of a search: skip sets that are tried, each for a reason, before Ax suggests any."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from sstool.search.clock import Clock
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import Bits, Candidate, DraftSpace
from sstool.search.log.records import Trial, best_of
from sstool.search.log.write import SearchWriter
from sstool.search.sources.dynamic_programme import LEVELS, cosine_front, front_sets
from sstool.search.sources.leave_one_out import LIGHT_CUTS, cut, cuts, measure_sensitivity, sensitivity_order
from sstool.search.sources.patterns import default_start, every_other, middle_blocks
from sstool.search.speed_model.costs import CostModel
from sstool.search.texts.make import CachedText

T = TypeVar("T")

logger = logging.getLogger(__name__)

_WARM_SHARE: Final = 0.12
"""Share of the budget that finding one kind of warm start may take."""
_REFINED: Final = 0.05
"""Distance from the best cut at which two more cuts are tried, as a share of the sublayers."""
_PASSES_PER_LEVEL: Final = 4
"""Estimated number of verify passes per level of cost that the dynamic programme takes."""
_SENSITIVITY_PASSES: Final = 8
"""Estimated number of passes per sublayer that the leave-one-out sensitivity takes."""


class Trials(Protocol):
    """The object that runs candidates, and knows when there is no time for another."""

    def is_over(self) -> bool:
        """Returns whether the trials, the sets or the time for another trial are used up."""

    def consider(self, source: str, candidates: Iterable[Candidate]) -> list[Trial]:
        """Runs the untried candidates until the search is over; returns the trials of all ever tried."""


@dataclass(frozen=True, kw_only=True)
class WarmStarts:
    """Runs the warm starts of one search.

    Attributes:
        builder: builder of the candidates' engines.
        space: the search space.
        texts: calibration texts.
        costs: speed model.
        clock: clock of the search.
        writer: log that keeps the leave-one-out sensitivity, and may hold that of an interrupted run.
        tell: function that returns the progress callback of a named part.
    """

    builder: DraftBuilder
    space: DraftSpace
    texts: Sequence[CachedText]
    costs: CostModel
    clock: Clock
    writer: SearchWriter
    tell: Callable[[str], Callable[[int, int], None]]

    def run(self, trials: Trials, starts: Sequence[tuple[str, Candidate]]) -> None:
        """Runs the given drafts, then patterns, the dynamic programme's sets, and leave-one-out cuts.

        Each of the last two is left out if finding it would take too much of the budget. Each set is tried
        over shared weights and, where they fit, over own weights.
        """
        num_layers, each = self.space.num_layers, self.space.of_each_kind
        for source, candidate in starts:
            trials.consider(source, [candidate])
            trials.consider("variant", each([candidate.skipped]))
        if self.space.has_own_weights:
            trials.consider("whole", [self.space.with_own_weights((0,) * (2 * num_layers))])
        trials.consider("every-other", each([default_start(num_layers), *every_other(num_layers)]))
        trials.consider("block", each(middle_blocks(num_layers)))
        verify = self.costs.verify(len(self.texts[0].text.prompt))[-1]
        if self.clock.affords(LEVELS * _PASSES_PER_LEVEL * verify, _WARM_SHARE) and not trials.is_over():
            trials.consider("dynamic-programme", each(self._front()))
        if self.clock.affords(2 * num_layers * _SENSITIVITY_PASSES * verify, _WARM_SHARE) and not trials.is_over():
            self._leave_one_out(trials)

    def _front(self) -> list[Bits]:
        text = self.texts[0].text
        with self.clock.part("dynamic_programme"):
            shares, tell = self.costs.shares(len(text.prompt)), self.tell("comparing hidden states")
            front = _optional("points of the dynamic programme", lambda: cosine_front(self.builder, text, shares, tell))
        return [] if front is None else front_sets(front)

    def _leave_one_out(self, trials: Trials) -> None:
        sensitivity = None if self.writer.earlier is None else self.writer.earlier.sensitivity
        if sensitivity is None:
            with self.clock.part("influence"):
                tell = self.tell("skipping sublayers one by one")
                sensitivity = _optional("the leave-one-out sensitivity", lambda: measure_sensitivity(self.builder, self.texts, tell))
            if sensitivity is not None:
                self.writer.write(sensitivity)
        if sensitivity is None:
            return
        order = sensitivity_order(sensitivity)
        light = [self.space.with_own_weights(bits) for bits in cuts(order, LIGHT_CUTS)] if self.space.has_own_weights else []
        best = best_of(trials.consider("leave-one-out", [*light, *self.space.of_each_kind(cuts(order))]), 1)
        if best:
            part = len((*best[0].skip.attention, *best[0].skip.mlp)) / len(order)
            refined = [cut(order, part - _REFINED), cut(order, part + _REFINED)]
            trials.consider("leave-one-out", self.space.of_each_kind(refined))


def _optional(name: str, find: Callable[[], T]) -> T | None:
    """Returns the result of `find`; None, with a warning, if it fails, as it does for some models."""
    try:
        return find()
    except Exception as err:  # noqa: BLE001 - ONNX Runtime's exceptions share no base
        logger.warning("the search goes on without %s: %s", name, " ".join(str(err).split()))
        return None
