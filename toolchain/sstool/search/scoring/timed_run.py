"""One prompt decoded once for real, plainly or with a candidate's draft and exit, and what the table of costs says of the same rounds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from ssruntime.backends.ort.slot import OrtSlot
from ssruntime.config import DecodeSettings
from ssruntime.results import DecodeStats, Trace
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import bits_of
from sstool.search.log.records import Trial
from sstool.search.speed_model.costs import CostModel, DraftCost

_WARM_UP_TOKENS: Final = 8
"""Tokens to decode before a draft's first run by the clock: its buffers are bound on their first use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeJob:
    """One prompt to decode once.

    Attributes:
        kind: of text.
        prompt_id: the prompt's name.
        index: the prompt's place; runs of one prompt stay together when intervals are drawn.
        ids: its token ids.
        settings: how to decode it plainly, with the number of new tokens.
    """

    kind: str
    prompt_id: str
    index: int
    ids: tuple[int, ...]
    settings: DecodeSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRun:
    """What decoding a task gave.

    Attributes:
        stats: counts and measured seconds.
        modelled: what the table says that the rounds take, in seconds.
    """

    stats: DecodeStats
    modelled: float


def run_job(builder: DraftBuilder, slot: OrtSlot, job: DecodeJob, trial: Trial | None, costs: CostModel) -> JobRun:
    """Decodes a task.

    Args:
        builder: whose engine decodes.
        slot: with the trial's draft, and room for the task.
        job: what to decode.
        trial: a completed one, for its exit and its skip set; None for plain decoding.
        costs: what the model of speed says.
    """
    settings, trace = job.settings, Trace()
    if trial is not None:
        assert trial.exit is not None
        assert trial.max_draft is not None
        threshold = settings.exit_threshold if trial.exit_threshold is None else trial.exit_threshold
        settings = dataclasses.replace(
            settings,
            mode="speculative",
            exit=trial.exit,
            exit_threshold=threshold,
            max_draft=trial.max_draft,
            max_alternatives=settings.max_alternatives if trial.max_alternatives is None else trial.max_alternatives,
        )
    _, stats = builder.engine.decode_on(slot, job.ids, settings, trace=trace)
    context = len(job.ids) + job.settings.max_new_tokens // 2
    verify = costs.verify(context)
    draft = DraftCost(0.0, 0.0) if trial is None else costs.draft(bits_of(trial.skip, builder.num_layers), context)
    modelled = sum(draft.seconds(len(r.proposals)) + verify[len(r.proposals) + len(r.alternatives)] for r in trace.rounds)
    return JobRun(stats=stats, modelled=modelled)


def warm_up(builder: DraftBuilder, slot: OrtSlot, job: DecodeJob, trial: Trial | None, costs: CostModel) -> None:
    """Decodes the beginning of a task, as in `run_job`."""
    short = dataclasses.replace(job.settings, max_new_tokens=min(_WARM_UP_TOKENS, job.settings.max_new_tokens))
    run_job(builder, slot, dataclasses.replace(job, settings=short), trial, costs)
