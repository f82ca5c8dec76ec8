"""Evaluates one candidate: opens its draft and runs it over all calibration texts, or a part if it is slow.

A candidate that is run over all texts also decodes the first one by the clock for a while, verify passes and
host work included. That checks the speed model and does not change the score.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ssruntime.acceptance import make_acceptance
from ssruntime.backends.base import DraftEngine
from ssruntime.config import DecodeSettings
from ssruntime.planning.acceptance import fit
from ssruntime.stopping import StoppingRule
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import Candidate
from sstool.search.log.records import COMPLETED, FAILED, STOPPED, Timed, Trial
from sstool.search.scoring.draft_sequences import DraftedText
from sstool.search.scoring.objective import Objective, Score
from sstool.search.scoring.rules import START
from sstool.search.scoring.timed_run import DecodeJob, run_job, warm_up
from sstool.search.speed_model.costs import CostModel
from sstool.search.texts.make import CachedText, CalibrationText

logger = logging.getLogger(__name__)

_PARTS: Final = ((0.125, 0.85), (0.4, 0.95))
"""Shares of the texts, each with the fraction of the best candidate's speed below which a candidate stops."""
_TIMED_TOKENS: Final = 48
"""Tokens decoded by the clock, past EOS if necessary; a small part of a candidate's run."""


@dataclass(slots=True)
class _Incumbent:
    """The best candidate so far: its speed over each share of the texts and over all; its stopping rule."""

    parts: tuple[float, ...] = (0.0,) * len(_PARTS)
    whole: float = 0.0
    stopping: StoppingRule = START


class Evaluator:
    """Runs candidates over texts, and compares each with the best one so far."""

    def __init__(
        self,
        builder: DraftBuilder,
        texts: Sequence[CachedText],
        objective: Objective,
        costs: CostModel,
        settings: Callable[[CalibrationText], DecodeSettings],
    ) -> None:
        self._builder = builder
        self._objective = objective
        self._costs = costs
        self._settings = settings
        self._texts = texts
        self._best = _Incumbent()
        self._job = self._clock_job()

    def run(self, index: int, source: str, candidate: Candidate, *, suggest_seconds: float = 0.0, whole: bool = False) -> Trial:
        """Returns the trial of a candidate; if the candidate fails, the trial says why.

        Args:
            index: number of the trial.
            source: source that proposed the candidate.
            candidate: the candidate.
            suggest_seconds: seconds that proposing it took.
            whole: whether to run it over all texts even if it is not promising.
        """
        begun = time.perf_counter()
        try:
            trial = self._run(index, source, candidate, whole=whole)
        except Exception as err:
            if isinstance(err, OSError) and err.errno == errno.ENOSPC:
                raise  # every later candidate would fail too
            error = " ".join((str(err) or type(err).__name__).split())
            trial = Trial(index=index, source=source, status=FAILED, skip=candidate.skip_set(), int4=candidate.low_bit_set(), error=error)
        return dataclasses.replace(trial, seconds=time.perf_counter() - begun, suggest_seconds=suggest_seconds)

    def _run(self, index: int, source: str, candidate: Candidate, *, whole: bool) -> Trial:
        skip, int4 = candidate.skip_set(), candidate.low_bit_set()
        draft = self._builder.open(skip, int4)
        drafted = self._drafted(draft)
        status, rule, score, scale = self._score(candidate, drafted, whole=whole)
        trial = Trial(
            index=index,
            source=source,
            status=status,
            skip=skip,
            int4=int4,
            stopping=rule,
            max_alternatives=self._settings(self._texts[0].text).max_alternatives,
            cost_ratio=self._cost_ratio(candidate, score),
            counts=dict(score.counts),
            tokens_per_second=score.tokens_per_second * scale,
            speedup=score.speedup * scale,
        )
        if status != COMPLETED:
            return trial
        calibration = fit([one for text in drafted for one in text.observed()])
        return dataclasses.replace(trial, timed=self._time(trial, draft), calibration=calibration)

    def _score(self, candidate: Candidate, drafted: Sequence[DraftedText], *, whole: bool) -> tuple[str, StoppingRule, Score, float]:
        """Returns the status, the tuned stopping rule, the score, and a factor for the score's speed.

        The factor of a stopped candidate extrapolates its speed from a share of the texts to all of them.
        """
        rule, speeds = self._best.stopping, []
        for (part, hopeless), best in zip(_PARTS, self._best.parts, strict=True):
            rule, score = self._objective.tune(candidate, drafted[: max(1, round(part * len(drafted)))], rule)
            speeds.append(score.tokens_per_second)
            if not whole and speeds[-1] < hopeless * best:
                return STOPPED, rule, score, self._best.whole / best
        rule, score = self._objective.tune(candidate, drafted, rule)
        if score.tokens_per_second > self._best.whole:
            self._best = _Incumbent(tuple(speeds), score.tokens_per_second, rule)
        return COMPLETED, rule, score, 1.0

    def _drafted(self, draft: DraftEngine) -> list[DraftedText]:
        """Returns the texts, over which a draft runs when it is asked for a proposal."""
        for cached in self._texts:
            cached.slot.use_draft(draft)
        return [self._over(cached) for cached in self._texts]

    def _over(self, cached: CachedText) -> DraftedText:
        settings = self._settings(cached.text)
        return DraftedText(
            cached.slot,
            cached.text,
            make_acceptance(settings, len(cached.text.prompt)),
            max_alternatives=settings.max_alternatives,
            alternatives_end=self._builder.backend.alternatives_end,
        )

    def _time(self, trial: Trial, draft: DraftEngine) -> Timed | None:
        """Returns a short run by the clock; None if it fails, since the score is valid without it."""
        try:
            # A new slot for each run: one that is kept would keep its last draft open.
            slot = self._builder.backend.new_slot(len(self._job.ids) + _TIMED_TOKENS, draft)
            warm_up(self._builder, slot, self._job, trial, self._costs)
            run = run_job(self._builder, slot, self._job, trial, self._costs)
        except Exception as err:  # noqa: BLE001 - ONNX Runtime's exceptions share no base
            logger.warning("trial %d could not be timed: %s", trial.index, " ".join(str(err).split()))
            return None
        tokens = run.stats.emitted
        return Timed(tokens=tokens, measured=tokens / run.stats.decode_s, modelled=tokens / run.modelled)

    def _clock_job(self) -> DecodeJob:
        """Returns the job that each completed candidate decodes by the clock: the first prompt, past EOS."""
        text = self._texts[0].text
        endless = dataclasses.replace(self._settings(text), max_new_tokens=_TIMED_TOKENS, eos_token_ids=frozenset())
        return DecodeJob(kind=text.kind, index=0, ids=text.prompt, settings=endless)

    def _cost_ratio(self, candidate: Candidate, score: Score) -> float:
        """Returns the cost ratio: the mean draft step over an autoregressive step (mode `plain`)."""
        context = len(self._texts[0].text.prompt)
        cost, counts = self._costs.draft(candidate, context), score.counts.values()
        steps, drafts = sum(c.proposed for c in counts), sum(c.reached[0] for c in counts if c.reached)
        mean = cost.seconds(steps, drafts) / steps if steps else cost.first
        return mean / self._costs.verify(context)[0]
