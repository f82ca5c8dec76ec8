"""Compares speculative with autoregressive decoding (mode `plain`), token by token, over a plan's prompts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict

import onnxruntime as ort

from ssruntime.artifact import MANIFEST
from ssruntime.cache_folder import cache_folder
from ssruntime.engine import Engine
from ssruntime.errors import PromptError
from ssruntime.sampling.noise import prompt_seed
from sstool.artifact_files.bits_record import NEAR_TIE_TOLERANCE
from sstool.check.journal import CaseOutcome, Journal, journal_name
from sstool.check.plan import SEED, Case, Plan, Task, case_config
from sstool.check.report import FirstDifference, LosslessnessReport
from sstool.validation.lossless import YES, LogitRows, TracedRun, compare, compare_logits, traced
from sstool.version import code_digest

logger = logging.getLogger(__name__)

OnCompared = Callable[[int, int, str], None]
"""Called with the number of finished comparisons, the total number, and the name of the next one."""


def check_losslessness(
    engine: Engine, plan: Plan, *, tie_tolerance: float, resumable: bool, on_progress: OnCompared | None = None
) -> LosslessnessReport:
    """Returns how speculative decoding compares with plain decoding over a plan.

    Args:
        engine: an engine with a draft.
        plan: the prompts and settings to decode.
        tie_tolerance: largest distance of two decision scores in a near tie; 0 where the kernels of this
            machine pass the bit test. Then the logits of both must have the same bits.
        resumable: whether to store finished comparisons in the cache folder, and to skip those stored there.
        on_progress: called before each comparison, and once at the end.
    """
    path = cache_folder() / "check" / journal_name(_identity(engine, plan, tie_tolerance=tie_tolerance)) if resumable else None
    journal = Journal(path)
    checker = _Checker(engine, plan, journal, on_progress, tie_tolerance=tie_tolerance)
    finished = False
    try:
        for task in plan.tasks:
            checker.run(task)
        finished = True
    finally:
        journal.close(done=finished)
    return checker.report()


class _Checker:
    """Runs tasks and counts their outcomes."""

    def __init__(self, engine: Engine, plan: Plan, journal: Journal, on_progress: OnCompared | None, *, tie_tolerance: float) -> None:
        self._engine = engine
        self._plan = plan
        self._journal = journal
        self._on_progress = on_progress
        self._tie_tolerance = tie_tolerance
        self._done = 0
        self._resumed = 0
        self._outcomes: list[CaseOutcome] = []
        self._refused: set[tuple[str, int]] = set()
        self._first: FirstDifference | None = None

    def run(self, task: Task) -> None:
        """Compares each case of a task with plain decoding, unless the journal already has the comparison."""
        try:
            ids = self._engine.encode(task.prompt.prompt)
        except PromptError as err:
            logger.warning("prompt %s is refused: %s", task.prompt.id, err.message)
            self._refused.add((task.file, task.prompt.index))
            self._done += len(task.cases)
            return
        plain: TracedRun | None = None
        for case in task.cases:
            if self._on_progress is not None:
                self._on_progress(self._done, self._plan.num_comparisons, f"{task.prompt.id}, {case.name}")
            unit = _unit(task, case)
            outcome = self._journal.get(unit)
            if outcome is None:
                if plain is None:
                    plain = self._plain(task, ids)
                outcome = self._compare(task, case, ids, plain)
                self._journal.add(unit, outcome)
            else:
                self._resumed += 1
            self._count(task, case, outcome)
            self._done += 1

    def report(self) -> LosslessnessReport:
        """Returns the counts so far."""
        if self._on_progress is not None:
            self._on_progress(self._done, self._plan.num_comparisons, "")
        verdicts = [o.verdict for o in self._outcomes]
        return LosslessnessReport(
            comparisons=len(verdicts),
            yes=verdicts.count("yes"),
            near_tie=verdicts.count("near_tie"),
            no=verdicts.count("no"),
            tokens=sum(o.tokens for o in self._outcomes),
            near_ties=sum(o.near_ties for o in self._outcomes),
            logit_rows=sum(o.logit_rows for o in self._outcomes),
            logit_rows_differing=sum(o.logit_rows_differing for o in self._outcomes),
            bits_equal=self._tie_tolerance == 0,
            refused=len(self._refused),
            resumed=self._resumed,
            first_difference=self._first,
            near_ties_allowed_per_10k=max(1.0, self._tie_tolerance / NEAR_TIE_TOLERANCE),
        )

    def _plain(self, task: Task, ids: Sequence[int]) -> TracedRun:
        seed = prompt_seed(SEED, task.prompt.index)
        case = Case(name="plain", sampling=task.sampling, mode="plain")
        config = case_config(case, num_tokens=self._plan.num_tokens, seed=seed)
        return traced(self._engine, ids, config, logits=True)[1]

    def _compare(self, task: Task, case: Case, ids: Sequence[int], plain: TracedRun) -> CaseOutcome:
        seed = prompt_seed(SEED, task.prompt.index)
        config = case_config(case, num_tokens=self._plan.num_tokens, seed=seed)
        _, run = traced(self._engine, ids, config, logits=True)
        found = compare(self._engine, config, plain=plain.token_ids, run=run, tie_tolerance=self._tie_tolerance)
        return CaseOutcome.of(found, compare_logits(plain, run) if found.verdict == YES else LogitRows(0, 0))

    def _count(self, task: Task, case: Case, outcome: CaseOutcome) -> None:
        self._outcomes.append(outcome)
        found = outcome.difference
        if found is not None and (self._first is None or (found.verdict == "no" and self._first.verdict != "no")):
            self._first = FirstDifference(file=task.file, id=task.prompt.id, case=case.name, **asdict(found))


def _unit(task: Task, case: Case) -> str:
    return f"{task.file}:{task.prompt.index}:{case.name}"


def _identity(engine: Engine, plan: Plan, *, tie_tolerance: float) -> dict[str, object]:
    """Returns everything that the outcomes of a plan depend on."""
    prompts = hashlib.sha256()
    for task in plan.tasks:
        prompts.update(f"{task.file}\0{task.prompt.index}\0{task.prompt.prompt}\0".encode())
    return {
        "manifest": hashlib.sha256(engine.artifact.path(MANIFEST).read_bytes()).hexdigest(),
        "onnxruntime": ort.__version__,
        "code": code_digest(),
        "threads": engine.backend.threads,
        "max_context": engine.backend.max_context,
        "packing": engine.backend.packing,
        "tie_tolerance": tie_tolerance,
        "seed": SEED,
        "num_tokens": plan.num_tokens,
        "prompts": prompts.hexdigest(),
        "cases": sorted({repr(sorted(asdict(case).items())) for task in plan.tasks for case in task.cases}),
    }
