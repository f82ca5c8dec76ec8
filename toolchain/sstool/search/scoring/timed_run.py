"""Decodes one prompt by the clock, with or without a draft, and models the time of the same rounds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from ssruntime.backends.base import Slot
from ssruntime.config import DecodeSettings
from ssruntime.planning.planner import Planner
from ssruntime.proposers.skip import SOURCE
from ssruntime.results import DecodeStats, Trace
from ssruntime.stopping import OptimalRule
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import candidate_of
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


def run_job(
    builder: DraftBuilder, slot: Slot, job: DecodeJob, trial: Trial | None, costs: CostModel, planner: Planner | None = None
) -> JobRun:
    """Returns the result of decoding a job once.

    Args:
        builder: owner of the engine that decodes.
        slot: slot with the trial's draft, and room for the job.
        job: prompt to decode, and how.
        trial: completed trial whose draft is used; None for autoregressive decoding.
        costs: speed model.
        planner: planner of the draft for mode `auto`; None for mode `speculative` and the trial's rule.
    """
    settings, trace = job.settings, Trace()
    if trial is not None:
        settings = _drafting(settings, trial, is_planned=planner is not None)
    _, stats = builder.engine.decode_on(slot, job.ids, settings, planner=planner, trace=trace)
    context = len(job.ids) + job.settings.max_new_tokens // 2
    verify = costs.verify(context)
    none = DraftCost(0.0, 0.0)
    draft = none if trial is None else costs.draft(candidate_of(trial.skip, builder.num_layers, trial.int4), context)
    modelled = sum(draft.seconds(r.sources.count(SOURCE)) + verify[r.tree.num_rows - 1] for r in trace.rounds)
    return JobRun(stats=stats, modelled=modelled)


def warm_up(
    builder: DraftBuilder, slot: Slot, job: DecodeJob, trial: Trial | None, costs: CostModel, planner: Planner | None = None
) -> None:
    """Decodes the first tokens of a job, with the arguments of `run_job`."""
    short = dataclasses.replace(job.settings, max_new_tokens=min(_WARM_UP_TOKENS, job.settings.max_new_tokens))
    run_job(builder, slot, dataclasses.replace(job, settings=short), trial, costs, planner)


def _drafting(settings: DecodeSettings, trial: Trial, *, is_planned: bool) -> DecodeSettings:
    """Returns the settings of autoregressive decoding, changed for decoding with a trial's draft."""
    assert trial.stopping is not None
    return dataclasses.replace(
        settings,
        mode="auto" if is_planned else "speculative",
        stopping=OptimalRule() if is_planned else trial.stopping,
        max_alternatives=settings.max_alternatives if trial.max_alternatives is None else trial.max_alternatives,
    )
