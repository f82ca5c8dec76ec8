"""Decodes one prompt by the clock, with or without a draft, and models the time of the same rounds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from ssruntime.backends.base import Slot
from ssruntime.config import DecodeSettings
from ssruntime.results import DecodeStats, Trace
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import bits_of
from sstool.search.log.records import Trial
from sstool.search.speed_model.costs import CostModel, DraftCost

_WARM_UP_TOKENS: Final = 8
"""Tokens to decode before a draft's first timed run, because its buffers are bound on first use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeJob:
    """One prompt to decode once.

    Attributes:
        kind: kind of text, `sampled` or `greedy`.
        index: index of the prompt. The bootstrap for confidence intervals resamples all runs of a prompt
            together.
        ids: token ids of the prompt.
        settings: settings for autoregressive decoding (mode `plain`), including the number of new tokens.
    """

    kind: str
    index: int
    ids: tuple[int, ...]
    settings: DecodeSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRun:
    """The measured and modelled result of one job.

    Attributes:
        stats: counts and measured seconds.
        modelled: modelled seconds of the same rounds.
    """

    stats: DecodeStats
    modelled: float


def run_job(builder: DraftBuilder, slot: Slot, job: DecodeJob, trial: Trial | None, costs: CostModel) -> JobRun:
    """Returns the result of decoding a job once.

    Args:
        builder: owner of the engine that decodes.
        slot: slot with the trial's draft, and room for the job.
        job: prompt to decode, and how.
        trial: completed trial whose skip set and stopping rule are used; None for autoregressive decoding.
        costs: speed model.
    """
    settings, trace = job.settings, Trace()
    if trial is not None:
        assert trial.stopping is not None
        settings = dataclasses.replace(
            settings,
            mode="speculative",
            stopping=trial.stopping,
            max_alternatives=settings.max_alternatives if trial.max_alternatives is None else trial.max_alternatives,
        )
    _, stats = builder.engine.decode_on(slot, job.ids, settings, trace=trace)
    context = len(job.ids) + job.settings.max_new_tokens // 2
    verify = costs.verify(context)
    draft = DraftCost(0.0, 0.0) if trial is None else costs.draft(bits_of(trial.skip, builder.num_layers), context)
    modelled = sum(draft.seconds(r.proposed) + verify[r.tree.num_rows - 1] for r in trace.rounds)
    return JobRun(stats=stats, modelled=modelled)


def warm_up(builder: DraftBuilder, slot: Slot, job: DecodeJob, trial: Trial | None, costs: CostModel) -> None:
    """Decodes the first tokens of a job, with the arguments of `run_job`."""
    short = dataclasses.replace(job.settings, max_new_tokens=min(_WARM_UP_TOKENS, job.settings.max_new_tokens))
    run_job(builder, slot, dataclasses.replace(job, settings=short), trial, costs)
