"""The best candidates timed for real on text that nothing was tuned on: the winner is who wins here."""

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
from sstool.search.log.records import COMPLETED, EARLIER, Finalist, Trial, best_of
from sstool.search.scoring.timed_run import DecodeJob
from sstool.search.settings import GREEDY_EVERY, SAMPLED, SearchSettings
from sstool.search.speed_model.costs import CostModel

_NEAR: Final = 0.9
"""Of the best modelled speed: what is slower than that is slower by the clock too."""


def choose_finalists(trials: Sequence[Trial], warm: Trial | None, count: int) -> list[Trial]:
    """Returns the candidates to time: the best by the model of speed, and those to hold them against.

    The best warm start shows what searching was worth. A draft that the artifact had is not replaced unseen, unless it is further
    behind than the model of speed errs.

    Args:
        trials: all.
        warm: the best warm start.
        count: of the best.
    """
    chosen = best_of(trials, count)
    rivals = [] if warm is None else [warm]
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
    """Decodes prompts plainly and with each finalist's draft and exit, and compares.

    The best of many candidates lie closer together than a few prompts can tell, so as many prompts are decoded as there is time for.

    Args:
        builder: opens the drafts.
        trials: the finalists.
        prompts: to decode; each is sampled, and every third decoded greedily too.
        settings: how to sample, and the kinds' weights.
        costs: what the model of speed says of the same runs.
        affords: tells whether there is time for another run, given the seconds that the last one took.
        on_run: told how many runs are done, of how many.
    """
    jobs = _jobs(builder, prompts, settings)
    plain, *drafts = time_head_to_head(builder, trials, jobs, costs, on_run, affords)
    return [_finalist(draft, plain, settings) for draft in drafts]


def _jobs(builder: DraftBuilder, prompts: Sequence[PromptRecord], settings: SearchSettings) -> list[DecodeJob]:
    """Returns what to decode, the kinds mixed from the beginning on."""
    kinds = settings.kinds
    repeats = sampled_repeats(len(prompts)) if SAMPLED in kinds else 1
    encoded = [(prompt, tuple(builder.engine.encode(prompt.prompt))) for prompt in prompts]
    jobs = []
    for repeat in range(repeats):
        seed = (settings.seed + 1 + repeat) % SEED_LIMIT  # not the noise that the search has seen
        for number, (prompt, ids) in enumerate(encoded):
            for kind in kinds:
                if _is_run(kind, number, repeat, len(kinds)):
                    plainly = builder.engine.settings(settings.decoding(kind, prompt_seed(seed, prompt.index)))
                    endless = dataclasses.replace(plainly, max_new_tokens=FINAL_TOKENS, eos_token_ids=frozenset())
                    jobs.append(DecodeJob(kind=kind, prompt_id=prompt.id, index=number, ids=ids, settings=endless))
    return jobs


def _is_run(kind: str, number: int, repeat: int, num_kinds: int) -> bool:
    """Whether a prompt is decoded so: sampled every time, greedily once, as the text would be the same, and every third prompt only."""
    return kind == SAMPLED or (repeat == 0 and (number % GREEDY_EVERY == 0 or num_kinds == 1))


def _finalist(draft: TimedDraft, plain: TimedDraft, settings: SearchSettings) -> Finalist:
    weights = {kind: settings.weight_of(kind) for kind in draft.samples}
    shares = {kind: weight / sum(weights.values()) for kind, weight in weights.items()}
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
        acceptance_rate=sum(s.stats.accepted for s in runs) / proposed if proposed else None,
        tokens_per_round=sum(s.stats.emitted for s in runs) / rounds if rounds else None,
        prompts=len(runs),
    )
