"""Head-to-head timing: autoregressive decoding (mode `plain`) and mode `auto` with each draft take turns."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ssruntime.backends.base import Slot
from ssruntime.planning.acceptance import UNKNOWN
from ssruntime.planning.batch_costs import BatchCosts
from ssruntime.planning.planner import Planner
from ssruntime.results import DecodeStats
from sstool.bench.summary import TimedRun
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import candidate_of
from sstool.search.finals.runs import LEAST_RUNS
from sstool.search.log.records import Trial
from sstool.search.scoring.timed_run import DecodeJob, run_job, warm_up
from sstool.search.speed_model.costs import CostModel

logger = logging.getLogger(__name__)


def always(_seconds: float) -> bool:
    """Returns True: there is time for every job."""
    return True


@dataclass(slots=True)
class TimedDraft:
    """The timed runs of one draft, or of autoregressive decoding.

    Attributes:
        trial: trial with the draft; None for autoregressive decoding.
        slot: slot that only this draft uses.
        planner: what mode `auto` learns of this draft; None for autoregressive decoding.
        samples: timed runs, by kind of text.
        modelled: modelled seconds of the same runs, by kind of text.
    """

    trial: Trial | None
    slot: Slot
    planner: Planner | None = None
    samples: dict[str, list[TimedRun]] = field(default_factory=dict)
    modelled: dict[str, float] = field(default_factory=dict)

    def every(self) -> list[TimedRun]:
        """Returns the runs of all kinds of text."""
        return [sample for samples in self.samples.values() for sample in samples]

    def seconds_per_token(self, shares: Mapping[str, float]) -> float:
        """Returns the measured seconds per token; the kinds of text are weighted by shares that sum to 1."""
        return sum(share * sum(s.stats.decode_s for s in self.samples[kind]) / self._tokens(kind) for kind, share in shares.items())

    def modelled_per_token(self, shares: Mapping[str, float]) -> float:
        """Returns the modelled seconds per token of the same runs, weighted alike."""
        return sum(share * self.modelled[kind] / self._tokens(kind) for kind, share in shares.items())

    def add(self, job: DecodeJob, stats: DecodeStats, modelled: float) -> None:
        """Records a run of a job, with the modelled seconds of the same run."""
        self.samples.setdefault(job.kind, []).append(TimedRun(index=job.index, stats=stats))
        self.modelled[job.kind] = self.modelled.get(job.kind, 0.0) + modelled

    def _tokens(self, kind: str) -> int:
        return max(1, sum(s.tokens for s in self.samples[kind]))


def _succeeds(trial: Trial | None, run: Callable[[], None]) -> bool:
    """Runs a part of a trial's timing; returns whether it succeeded, and warns if not.

    Autoregressive decoding (None) must succeed, because there is no result without it.
    """
    try:
        run()
    except Exception as err:
        if trial is None:
            raise
        logger.warning("trial %d fails as a finalist and is left out: %s", trial.index, " ".join(str(err).split()))
        return False
    return True


def time_head_to_head(
    builder: DraftBuilder,
    trials: Sequence[Trial],
    jobs: Sequence[DecodeJob],
    costs: CostModel,
    on_job: Callable[[int, int], None],
    affords: Callable[[float], bool] = always,
) -> list[TimedDraft]:
    """Returns the timed runs of autoregressive decoding, and after it those of each trial's draft.

    All of them decode the same jobs: all jobs, or as many of the first ones as there is time for. A draft
    that fails is left out, with a warning.

    Args:
        builder: builder that opens the drafts.
        trials: trials with the drafts to time.
        jobs: prompts to decode, and how.
        costs: speed model, for the modelled seconds of the same runs.
        on_job: called before each job with the number of jobs done and their number in all.
        affords: function that returns whether there is time to decode another job in every mode, given the
            seconds that the last job took in all of them.
    """
    context = max(len(job.ids) + job.settings.max_new_tokens for job in jobs)
    drafts: list[TimedDraft] = []

    def open_draft(trial: Trial | None) -> None:
        slot = builder.backend.new_slot(context, None if trial is None else builder.open(trial.skip, trial.int4))
        planner = None if trial is None else _planner(trial, builder.num_layers, costs)
        warm_up(builder, slot, jobs[0], trial, costs, planner)
        drafts.append(TimedDraft(trial, slot, planner))

    for trial in (None, *trials):
        _succeeds(trial, functools.partial(open_draft, trial))
    took = 0.0
    for turn, job in enumerate(jobs):
        if turn >= LEAST_RUNS and not affords(took):
            break
        on_job(turn, len(jobs))
        begun = time.perf_counter()
        # The first one and the direction change with every job, so that a drift of the machine's speed
        # affects all alike.
        first = turn % len(drafts)
        order = drafts[first:] + drafts[:first]
        for draft in order if turn % 2 == 0 else order[::-1]:
            if not _succeeds(draft.trial, functools.partial(_time, builder, draft, job, costs)):
                drafts.remove(draft)
        took = time.perf_counter() - begun
    return drafts


def _time(builder: DraftBuilder, draft: TimedDraft, job: DecodeJob, costs: CostModel) -> None:
    run = run_job(builder, draft.slot, job, draft.trial, costs, draft.planner)
    draft.add(job, run.stats, run.modelled)


def _planner(trial: Trial, num_layers: int, costs: CostModel) -> Planner:
    """Returns the planner that a deployed draft would have, with the costs of the latency table."""
    measured = costs.pass_costs(candidate_of(trial.skip, num_layers, trial.int4))
    return Planner(BatchCosts(measured, learns=True), trial.calibration or UNKNOWN, learns=True)
