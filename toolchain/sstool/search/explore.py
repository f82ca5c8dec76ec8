"""Tries candidates, warm starts and then Ax's suggestions, until the trials or the budget are used up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from sstool.search.clock import Clock
from sstool.search.drafts.space import Candidate, DraftSpace, Point, candidate_of
from sstool.search.log.records import AX, SUGGESTED, Trial, best_of
from sstool.search.log.write import SearchWriter
from sstool.search.scoring.evaluate import Evaluator
from sstool.search.settings import SearchSettings
from sstool.search.sources.ax import AxDriver, AxFailedError

logger = logging.getLogger(__name__)

_MOST_IDLE: Final = 5
"""Batches in a row without a new candidate after which Ax is taken to have no more suggestions."""

OnTrial = Callable[[int, int, float | None], None]
"""Called after each trial with the trials done, the most trials, and the best modelled speed-up so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """When to stop trying candidates.

    Attributes:
        trials: largest number of trials, those of an interrupted run included.
        reserve: seconds of the budget that are kept for timing the finalists.
    """

    trials: int
    reserve: float


class Explorer:
    """The trials of one search so far; each is written to the log when it ends."""

    def __init__(
        self, evaluator: Evaluator, writer: SearchWriter, clock: Clock, limits: Limits, space: DraftSpace, on_trial: OnTrial
    ) -> None:
        """Starts with the trials of the log, if the search is resumed.

        The best of them is run again, because the evaluator compares later candidates with it.
        """
        self._evaluator = evaluator
        self._writer = writer
        self._clock = clock
        self._limits = limits
        self._space = space
        self._on_trial = on_trial
        self.ax_error: str | None = None
        self.trials: list[Trial] = [] if writer.earlier is None else list(writer.earlier.trials)
        self._tried = {self._candidate(trial): trial for trial in self.trials}
        best = self.best()
        if best is not None:
            evaluator.run(best.index, best.source, self._candidate(best), whole=True)

    def best(self, *, warm: bool = False) -> Trial | None:
        """Returns the completed trial with the best modelled speed; with `warm`, only among warm starts."""
        return next(iter(best_of([t for t in self.trials if not (warm and t.source in SUGGESTED)], 1)), None)

    def is_over(self) -> bool:
        """Returns whether the trials, the sets or the time for another trial are used up."""
        if self._room() <= 0:
            return True
        last = [t.seconds for t in self.trials[-3:]]
        return self._clock.left() - self._limits.reserve < (max(last) if last else 0.0)

    def consider(self, source: str, candidates: Iterable[Candidate]) -> list[Trial]:
        """Runs the untried candidates until the search is over; returns the trials of all ever tried."""
        wanted = list(candidates)
        for candidate in wanted:
            if candidate.is_draft and candidate not in self._tried and not self.is_over():
                self._try(source, candidate, 0.0)
        return [self._tried[candidate] for candidate in wanted if candidate in self._tried]

    def follow_ax(self, settings: SearchSettings) -> None:
        """Runs the candidates that Ax suggests, a batch at a time, until the search is over.

        A failure inside Ax ends the suggestions, not the search.
        """
        if self.is_over() or self.best() is None:
            return
        try:
            self._follow_ax(settings)
        except AxFailedError as err:
            self.ax_error = str(err)[:200]
            logger.warning("Ax failed after trial %d and suggests no more candidates: %s", len(self.trials) - 1, self.ax_error)

    def _follow_ax(self, settings: SearchSettings) -> None:
        with self._clock.part("ax"):
            driver = AxDriver(2 * self._space.num_layers, has_own_weights=self._space.has_own_weights, seed=settings.seed)
            for point, trial in self._by_point().items():
                driver.attach(point, trial.speedup, trial.score_error())
        idle = 0
        while not self.is_over() and idle < _MOST_IDLE:
            count = min(settings.batch, self._room())
            before = self._clock.elapsed()
            with self._clock.part("ax"):
                suggested = driver.suggest(count)
            seconds = (self._clock.elapsed() - before) / max(1, len(suggested))
            if not suggested:
                logger.info("Ax has no more suggestions")
                return
            drafts = {point: self._space.at(point) for point in suggested}
            idle = 0 if any(candidate not in self._tried for candidate in drafts.values()) else idle + 1
            # Trials run in the order of the batch, so that the same results always lead to the same
            # suggestions.
            for candidate in drafts.values():
                if candidate not in self._tried:
                    if self.is_over():
                        return
                    self._try(AX, candidate, seconds)
            with self._clock.part("ax"):
                for point, candidate in drafts.items():
                    driver.attach(point, self._tried[candidate].speedup, self._tried[candidate].score_error())

    def _by_point(self) -> dict[Point, Trial]:
        """Returns the trials by point, without drafts that were given with int4 weights of other parts."""
        points = ((self._space.point(candidate), candidate, trial) for candidate, trial in self._tried.items())
        return {point: trial for point, candidate, trial in points if self._space.at(point) == candidate}

    def _candidate(self, trial: Trial) -> Candidate:
        return candidate_of(trial.skip, self._space.num_layers, trial.int4)

    def _room(self) -> int:
        """Returns how many more trials the limit and the number of untried candidates allow."""
        return min(self._limits.trials - len(self.trials), self._space.num_points - len(self._by_point()))

    def _try(self, source: str, candidate: Candidate, suggest_seconds: float) -> Trial:
        with self._clock.part("candidates"):
            trial = self._evaluator.run(len(self.trials), source, candidate, suggest_seconds=suggest_seconds)
        self._writer.write(trial)
        self.trials.append(trial)
        self._tried[candidate] = trial
        best = self.best()
        self._on_trial(len(self.trials), self._limits.trials, None if best is None else best.speedup)
        return trial
