"""Drafts timed for real, in turns with plain decoding and with each other, prompt by prompt, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ssruntime.backends.ort.slot import OrtSlot
from sstool.bench.summary import TimedRun
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.finals.runs import LEAST_RUNS
from sstool.search.log.records import Trial
from sstool.search.scoring.timed_run import DecodeJob, run_job, warm_up
from sstool.search.speed_model.costs import CostModel


def always(_seconds: float) -> bool:
    """There is time for everything."""
    return True


@dataclass(slots=True)
class TimedDraft:
    """One draft, or plain decoding, and what it did.

    Attributes:
        trial: the draft with its exit; None for plain decoding.
        slot: its own.
        samples: its runs, by kind of text.
        modelled: what the table of costs says of them, in seconds, by kind.
    """

    trial: Trial | None
    slot: OrtSlot
    samples: dict[str, list[TimedRun]] = field(default_factory=dict)
    modelled: dict[str, float] = field(default_factory=dict)

    def every(self) -> list[TimedRun]:
        """Returns all runs."""
        return [sample for samples in self.samples.values() for sample in samples]

    def seconds_per_token(self, shares: Mapping[str, float]) -> float:
        """Returns measured seconds; the kinds of text count by their shares, whose sum is 1."""
        return sum(share * sum(s.stats.decode_s for s in self.samples[kind]) / self._tokens(kind) for kind, share in shares.items())

    def modelled_per_token(self, shares: Mapping[str, float]) -> float:
        """Returns what the table says of the same runs."""
        return sum(share * self.modelled[kind] / self._tokens(kind) for kind, share in shares.items())

    def _tokens(self, kind: str) -> int:
        return max(1, sum(s.tokens for s in self.samples[kind]))


def time_head_to_head(
    builder: DraftBuilder,
    trials: Sequence[Trial],
    jobs: Sequence[DecodeJob],
    costs: CostModel,
    on_job: Callable[[int, int], None],
    affords: Callable[[float], bool] = always,
) -> list[TimedDraft]:
    """Has plain decoding and every draft decode every task, or as many of the first as there is time for.

    Args:
        builder: opens the drafts.
        trials: the drafts, each with its exit.
        jobs: what to decode.
        costs: what the model of speed says of the same runs.
        on_job: told how many tasks are done, of how many.
        affords: tells whether there is time for another task, given the seconds that the last one took all.

    Returns:
        Plain decoding first, then one a trial.
    """
    context = max(len(job.ids) + job.settings.max_new_tokens for job in jobs)
    drafts = [TimedDraft(None, builder.backend.new_slot(context))]
    drafts += [TimedDraft(trial, builder.backend.new_slot(context, builder.open(trial.skip))) for trial in trials]
    for draft in drafts:
        warm_up(builder, draft.slot, jobs[0], draft.trial, costs)
    took = 0.0
    for turn, job in enumerate(jobs):
        if turn >= LEAST_RUNS and not affords(took):
            break
        on_job(turn, len(jobs))
        begun = time.perf_counter()
        # Whoever begins changes with every prompt, and the direction too: what drifts drifts for all.
        first = turn % len(drafts)
        order = drafts[first:] + drafts[:first]
        for draft in order if turn % 2 == 0 else order[::-1]:
            run = run_job(builder, draft.slot, job, draft.trial, costs)
            sample = TimedRun(index=job.index, stats=run.stats)
            draft.samples.setdefault(job.kind, []).append(sample)
            draft.modelled[job.kind] = draft.modelled.get(job.kind, 0.0) + run.modelled
        took = time.perf_counter() - begun
    return drafts
