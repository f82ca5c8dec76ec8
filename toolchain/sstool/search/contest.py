"""Drafts timed for real, in turns with plain decoding and with each other, prompt by prompt, in one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ssruntime.backends.ort import OrtSlot
from ssruntime.config import DecodeSettings
from ssruntime.results import DecodeStats, Trace
from sstool.bench.summary import Sample
from sstool.search.candidates import Candidates
from sstool.search.latency import CostModel
from sstool.search.records import Trial
from sstool.search.space import bits_of

_WARM_UP: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
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


@dataclass(slots=True)
class Entrant:
    """One draft, or plain decoding, and what it did.

    Attributes:
        trial: the draft with its exit; None for plain decoding.
        slot: its own.
        samples: its runs, by kind of text.
        modelled: what the table of costs says of them, in seconds, by kind.
    """

    trial: Trial | None
    slot: OrtSlot
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    modelled: dict[str, float] = field(default_factory=dict)

    def every(self) -> list[Sample]:
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


def run_contest(
    candidates: Candidates, trials: Sequence[Trial], tasks: Sequence[Task], costs: CostModel, on_task: Callable[[int, int], None]
) -> list[Entrant]:
    """Has plain decoding and every draft decode every task.

    Args:
        candidates: opens the drafts.
        trials: the drafts, each with its exit.
        tasks: what to decode.
        costs: what the model of speed says of the same runs.
        on_task: told how many tasks are done, of how many.

    Returns:
        Plain decoding first, then one a trial.
    """
    context = max(len(task.ids) + task.settings.max_new_tokens for task in tasks)
    entrants = [Entrant(None, candidates.backend.new_slot(context))]
    entrants += [Entrant(trial, candidates.backend.new_slot(context, candidates.open(trial.skip))) for trial in trials]
    short = dataclasses.replace(tasks[0].settings, max_new_tokens=_WARM_UP)
    for entrant in entrants:
        _run(candidates, entrant, dataclasses.replace(tasks[0], settings=short))
    for turn, task in enumerate(tasks):
        on_task(turn, len(tasks))
        # Whoever begins changes with every prompt, and the direction too: what drifts drifts for all.
        first = turn % len(entrants)
        order = entrants[first:] + entrants[:first]
        for entrant in order if turn % 2 == 0 else order[::-1]:
            stats, trace = _run(candidates, entrant, task)
            sample = Sample(prompt_id=task.prompt_id, index=task.index, repeat=0, mode="", stats=stats, identical=None)
            entrant.samples.setdefault(task.kind, []).append(sample)
            seconds = _modelled(entrant, trace, task, costs, candidates.num_layers)
            entrant.modelled[task.kind] = entrant.modelled.get(task.kind, 0.0) + seconds
    return entrants


def _run(candidates: Candidates, entrant: Entrant, task: Task) -> tuple[DecodeStats, Trace]:
    settings, trial, trace = task.settings, entrant.trial, Trace()
    if trial is not None:
        assert trial.exit is not None
        assert trial.max_draft is not None
        threshold = settings.exit_threshold if trial.exit_threshold is None else trial.exit_threshold
        settings = dataclasses.replace(settings, mode="speculative", exit=trial.exit, exit_threshold=threshold, max_draft=trial.max_draft)
    _, stats = candidates.engine.decode_on(entrant.slot, task.ids, settings, trace=trace)
    return stats, trace


def _modelled(entrant: Entrant, trace: Trace, task: Task, costs: CostModel, num_layers: int) -> float:
    context = len(task.ids) + task.settings.max_new_tokens // 2
    verify = costs.verify(context)
    draft = 0.0 if entrant.trial is None else costs.draft(bits_of(entrant.trial.skip, num_layers), context)
    return sum(len(r.proposals) * draft + verify[len(r.proposals)] for r in trace.rounds)
