"""The plan of a losslessness check: the decoding settings, and the prompts that each setting is run on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ssruntime.config import EXITS, MAX_ALTERNATIVES_LIMIT, GenerationConfig
from sstool.check.prompts import PromptFile
from sstool.prompts import PromptRecord

SEED: Final = 0
FULL_TOKENS: Final = 64
FULL_GRID_PROMPTS: Final = 8
FULL_MAX_DRAFTS: Final = range(1, 13)
_OPTIMAL_MAX_DRAFTS: Final = (2, 12)
"""Limits that the exit `optimal` is run with: it seldom reaches the higher ones."""
QUICK_TOKENS: Final = 32
QUICK_PROMPTS: Final = 3
"""Prompts of each file in a quick check."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are sampled: everything but the seed that the text of autoregressive decoding depends on."""

    name: str
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting of decoding; None takes the value that the artifact was tuned for."""

    name: str
    sampling: Sampling
    mode: str = "speculative"
    exit: str | None = None
    exit_threshold: float | None = None
    max_draft: int | None = None
    max_alternatives: int | None = None


GREEDY: Final = Sampling(name="greedy", temperature=0.0)
SAMPLED: Final = Sampling(name="sampled", temperature=0.8, top_p=0.95)
FILTERED: Final = Sampling(name="filtered", temperature=1.0, top_k=50, top_p=0.9, min_p=0.02)

NAMED_CASES: Final = (
    Case(name="greedy auto", sampling=GREEDY, mode="auto"),
    Case(name="sampled auto", sampling=SAMPLED, mode="auto"),
    Case(
        name="long drafts, every filter",
        sampling=FILTERED,
        exit="confidence",
        exit_threshold=0.2,
        max_draft=15,
        max_alternatives=MAX_ALTERNATIVES_LIMIT,
    ),
)
"""Settings that a full check runs on all prompts.

The default mode greedily and sampled, and the longest passes with the most alternatives and all filters.
"""

QUICK_CASES: Final = (
    *NAMED_CASES,
    Case(name="sampled n-gram", sampling=SAMPLED, mode="ngram"),
    Case(name="greedy fixed 12", sampling=GREEDY, exit="fixed", max_draft=12, max_alternatives=0),
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One prompt with one kind of sampling: autoregressive decoding (mode `plain`) once, then each case.

    Attributes:
        file: name of the prompt file.
        prompt: the prompt; its index in the file gives the seed.
        sampling: sampling of plain decoding and of all cases.
        cases: the settings of speculative decoding to compare with plain decoding.
    """

    file: str
    prompt: PromptRecord
    sampling: Sampling
    cases: tuple[Case, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All tasks of a check; each run generates up to `num_tokens` tokens."""

    tasks: tuple[Task, ...]
    num_tokens: int

    @property
    def num_comparisons(self) -> int:
        """The number of speculative runs that are compared with plain decoding."""
        return sum(len(task.cases) for task in self.tasks)


def plan_check(files: Sequence[PromptFile], *, full: bool) -> Plan:
    """Returns the plan of a check.

    Args:
        files: the prompts.
        full: True runs every stopping rule with drafts of 1 to 12 tokens, greedy and sampled, on the first
            prompts of each file, and `NAMED_CASES` on all prompts. False runs a few settings on a few
            prompts.
    """
    if full:
        return Plan(tasks=tuple(_full_tasks(files)), num_tokens=FULL_TOKENS)
    short = [PromptFile(name=f.name, prompts=f.prompts[:QUICK_PROMPTS]) for f in files]
    return Plan(tasks=tuple(_tasks(short, QUICK_CASES)), num_tokens=QUICK_TOKENS)


def case_config(case: Case, *, num_tokens: int, seed: int) -> GenerationConfig:
    """Returns the decoding settings of a case; in mode `plain` only the sampling has an effect."""
    return GenerationConfig(
        max_new_tokens=num_tokens,
        mode=case.mode,
        exit=case.exit,
        exit_threshold=case.exit_threshold,
        max_draft=case.max_draft,
        max_alternatives=case.max_alternatives,
        temperature=case.sampling.temperature,
        top_k=case.sampling.top_k,
        top_p=case.sampling.top_p,
        min_p=case.sampling.min_p,
        sampling="coupled",
        seed=seed,
    )


def _full_tasks(files: Sequence[PromptFile]) -> Iterator[Task]:
    grid = tuple(
        Case(name=f"{sampling.name} {exit_name} {max_draft}", sampling=sampling, exit=exit_name, max_draft=max_draft)
        for sampling, exit_name, max_draft in itertools.product((GREEDY, SAMPLED), EXITS, FULL_MAX_DRAFTS)
        if exit_name != "optimal" or max_draft in _OPTIMAL_MAX_DRAFTS
    )
    grid += tuple(Case(name=f"{sampling.name} n-gram", sampling=sampling, mode="ngram") for sampling in (GREEDY, SAMPLED))
    first = [PromptFile(name=f.name, prompts=f.prompts[:FULL_GRID_PROMPTS]) for f in files]
    both = {(t.file, t.prompt.index, t.sampling): t for t in _tasks(first, (*NAMED_CASES, *grid))}
    yield from both.values()
    yield from (t for t in _tasks(files, NAMED_CASES) if (t.file, t.prompt.index, t.sampling) not in both)


def _tasks(files: Sequence[PromptFile], cases: Sequence[Case]) -> Iterator[Task]:
    samplings = list(dict.fromkeys(case.sampling for case in cases))
    for file, sampling in itertools.product(files, samplings):
        own = tuple(case for case in cases if case.sampling == sampling)
        for prompt in file.prompts:
            yield Task(file=file.name, prompt=prompt, sampling=sampling, cases=own)
