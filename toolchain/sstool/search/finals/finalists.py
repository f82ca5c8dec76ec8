"""Times the best candidates on held-out prompts; the fastest one by the clock wins the search."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

from ssruntime.config import SEED_LIMIT
from ssruntime.sampling.noise import prompt_seed
from sstool.bench.summary import weighted_interval
from sstool.prompts import PromptRecord
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.finals.head_to_head import TimedDraft, time_head_to_head
from sstool.search.finals.runs import FINAL_TOKENS, sampled_repeats
from sstool.search.log.records import COMPLETED, EARLIER, Finalist, Trial, best_of, shares_of
from sstool.search.scoring.timed_run import DecodeJob
from sstool.search.settings import SAMPLED, SearchSettings
from sstool.search.speed_model.costs import CostModel

WORTH: Final = 1.03
"""Least speed, relative to the best draft without own weights, at which these are worth their memory."""
_NEAR: Final = 0.9
"""Share of the best modelled speed. A candidate below it is slower by the clock too."""


def choose_finalists(trials: Sequence[Trial], warm: Trial | None, count: int) -> list[Trial]:
    """Returns the candidates to time: the best ones, and some to compare them with.

    The best warm start shows what the search gained. The best draft without own weights shows what these are
    worth. The artifact's earlier draft must lose by the clock before it is replaced, unless its modelled
    speed is lower by more than the speed model's error.

    Args:
        trials: all trials.
        warm: best warm start; None if there is none.
        count: number of the best candidates by modelled speed.
    """
    chosen = best_of(trials, count)
    rivals = [] if warm is None else [warm]
    rivals += best_of([trial for trial in trials if not trial.int4], 1)
    rivals += [t for t in trials if t.source == EARLIER and t.status == COMPLETED and _is_near(t, chosen[0])]
    for rival in rivals:
        if rival not in chosen:
            chosen.append(rival)
    return chosen


def _is_near(trial: Trial, best: Trial) -> bool:
    return (trial.speedup or 0.0) >= _NEAR * (best.speedup or 0.0)


def time_finalists(
    builder: DraftBuilder,
    trials: Sequence[Trial],
    prompts: Sequence[PromptRecord],
    settings: SearchSettings,
    costs: CostModel,
    affords: Callable[[float], bool],
    on_run: Callable[[int, int], None],
) -> list[Finalist]:
    """Returns the finalists, timed against autoregressive decoding (mode `plain`) on the same prompts.

    A few prompts cannot separate the best of many candidates, so as many prompts are decoded as there is time
    for.

    Args:
        builder: builder that opens the drafts.
        trials: trials of the finalists.
        prompts: prompts to decode; each is sampled, and every third is also decoded greedily.
        settings: settings of the search, which fix the sampling and the weights of the kinds of text.
        costs: speed model, for the modelled speed of the same runs.
        affords: function that returns whether there is time for another run, given the seconds of the last
            one.
        on_run: called before each run with the number of runs done and their number in all.
    """
    jobs = _jobs(builder, prompts, settings)
    plain, *drafts = time_head_to_head(builder, trials, jobs, costs, on_run, affords)
    return [_finalist(draft, plain, settings) for draft in drafts]


def _jobs(builder: DraftBuilder, prompts: Sequence[PromptRecord], settings: SearchSettings) -> list[DecodeJob]:
    """Returns the jobs to decode, with the kinds of text mixed from the start."""
    repeats = sampled_repeats(len(prompts)) if SAMPLED in settings.kinds else 1
    encoded = [(prompt, tuple(builder.engine.encode(prompt.prompt))) for prompt in prompts]
    jobs = []
    for repeat in range(repeats):
        seed = (settings.seed + 1 + repeat) % SEED_LIMIT  # other noise than in the calibration texts
        for number, (prompt, ids) in enumerate(encoded):
            for kind in settings.kinds_of(number):
                if kind == SAMPLED or repeat == 0:  # decoding greedily again would give the same text
                    autoregressive = builder.engine.settings(settings.decoding(kind, prompt_seed(seed, prompt.index)))
                    past_eos = dataclasses.replace(autoregressive, max_new_tokens=FINAL_TOKENS, eos_token_ids=frozenset())
                    jobs.append(DecodeJob(kind=kind, index=number, ids=ids, settings=past_eos))
    return jobs


def _finalist(draft: TimedDraft, plain: TimedDraft, settings: SearchSettings) -> Finalist:
    """Returns the record of a finalist's timed runs, against those of autoregressive decoding."""
    shares = shares_of(settings.weights, draft.samples)
    runs = draft.every()
    measured, base = 1 / draft.seconds_per_token(shares), 1 / plain.seconds_per_token(shares)
    proposed, rounds = sum(s.stats.proposed for s in runs), sum(s.stats.rounds for s in runs)
    assert draft.trial is not None
    return Finalist(
        trial=draft.trial.index,
        modelled=1 / draft.modelled_per_token(shares),
        measured=measured,
        plain=base,
        speedup=measured / base,
        interval_95=weighted_interval(plain.samples, draft.samples, shares),
        by_kind={kind: plain.seconds_per_token({kind: 1.0}) / draft.seconds_per_token({kind: 1.0}) for kind in shares},
        acceptance_rate=sum(s.stats.accepted for s in runs) / proposed if proposed else None,
        tokens_per_round=sum(s.stats.emitted for s in runs) / rounds if rounds else None,
        prompts=len(runs),
    )
