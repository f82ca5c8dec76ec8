"""Runs a whole search, from calibration texts to the result, and writes every step to disk when it ends."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssruntime.artifact import LowBitSet, SkipSet
from ssruntime.config import DecodeSettings
from ssruntime.engine import checked_threads, load
from ssruntime.errors import ConfigError
from ssruntime.machine import available_memory, default_threads
from sstool.prompts import BUILT_IN_CALIBRATION, PromptRecord, read_prompts
from sstool.quantize.low_bit_draft import LowBitStore, bytes_of_parts, is_in
from sstool.search.budget import CalibrationPlan, Resources, plan_calibration, repeat_plan
from sstool.search.clock import Clock
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import NO_OWN_WEIGHTS, Candidate, DraftSpace, candidate_of
from sstool.search.explore import Explorer, Limits
from sstool.search.finals.conclude import conclude
from sstool.search.finals.finalists import choose_finalists, time_finalists
from sstool.search.finals.runs import final_reserve
from sstool.search.log.identity import search_identity
from sstool.search.log.records import LATENCY, Finalist, Header, LatencyTable, Result, Trial
from sstool.search.log.write import SearchWriter, check_resumable
from sstool.search.progress import Progress
from sstool.search.scoring.evaluate import Evaluator
from sstool.search.scoring.objective import Objective, each_with
from sstool.search.settings import GREEDY, SAMPLED, SearchSettings
from sstool.search.sources.warm_starts import WarmStarts
from sstool.search.speed_model.costs import CostModel
from sstool.search.speed_model.measure import time_step
from sstool.search.speed_model.stored import find_latency, latency_digest, prepare_latency
from sstool.search.texts.make import CachedText, CalibrationText, calibration_digest, usable_prompts
from sstool.search.texts.stored import prepare_texts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Start:
    """A draft to try first.

    Attributes:
        source: where it comes from, `recipe` or `earlier`.
        skip: sublayers that it skips.
        int4: parts for which it has own weights.
    """

    source: str
    skip: SkipSet
    int4: LowBitSet = NO_OWN_WEIGHTS


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What to search, and how.

    Attributes:
        folder: folder of the artifact; the candidates share its verify engine and weights.
        work: work folder of the search; created if it does not exist.
        settings: settings of the search.
        starts: drafts to try first, each with its source, `recipe` or `earlier`.
        store: int4 weights of the candidates; None if candidates may have none.
        known_latency: files in which earlier searches may have left a latency table. A table is used if it
            was measured with this model, on this machine and with as many threads.
        threads: number of threads of each engine; None for the default.
        resume: whether to continue the search that was interrupted in `work`.
        on_cpu: whether the graphs of a target for GPUs run on the processor, which tells nothing about their
            speed.
        progress: function that is called with the progress of the search; None for no reports.
    """

    folder: Path
    work: Path
    settings: SearchSettings
    starts: tuple[Start, ...] = ()
    store: LowBitStore | None = None
    known_latency: tuple[Path, ...] = ()
    threads: int | None = None
    resume: bool = False
    on_cpu: bool = False
    progress: Callable[[Progress], None] | None = None


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """The outcome of a search.

    Attributes:
        header: log record of what was searched.
        result: log record of the conclusion.
        winner: trial that won; None if no draft beat autoregressive decoding (mode `plain`).
        closest: trial of the fastest finalist, whether it won or not; None if no finalist was timed.
        finalists: finalists with their timings.
        num_trials: number of candidates tried.
    """

    header: Header
    result: Result
    winner: Trial | None
    closest: Trial | None
    finalists: tuple[Finalist, ...]
    num_trials: int


def run_search(request: SearchRequest) -> SearchOutcome:
    """Returns the outcome of a search; `trials.jsonl` and `latency.json` remain in the work folder.

    Raises:
        PromptError: if the calibration prompts cannot be used.
        RecipeError: if the search to resume had another model or other settings, or its log is damaged.
        ConfigError: if the budget is too small for one trial.
        ArtifactError: if the artifact cannot be loaded.
    """
    clock = Clock(request.settings.budget_seconds)
    request.work.mkdir(parents=True, exist_ok=True)
    prompts = read_calibration(request.settings)
    with load(
        request.folder, threads=request.threads, max_context=None, max_sequences=1, draft=False, prefix_cache=0, on_cpu=request.on_cpu
    ) as engine:
        return _Search(request, clock, DraftBuilder(engine, request.store), prompts).run()


def check_search(settings: SearchSettings, threads: int | None) -> None:
    """Checks the inputs of a search that can be checked before there is an artifact.

    Raises:
        PromptError: if the calibration file cannot be read, or one of its lines is not a prompt.
        ConfigError: if the number of threads is out of its range.
    """
    # A pipe can be read only once, so it is left for the search to read.
    if settings.calibration is None or not Path(settings.calibration).exists() or Path(settings.calibration).is_file():
        read_calibration(settings)
    checked_threads(threads)


def read_calibration(settings: SearchSettings) -> list[PromptRecord]:
    """Returns the calibration prompts.

    Raises:
        PromptError: if the file cannot be read, or one of its lines is not a prompt.
    """
    return read_prompts(Path(settings.calibration) if settings.calibration else BUILT_IN_CALIBRATION)


class _Search:
    """One running search: the state that its parts share."""

    def __init__(self, request: SearchRequest, clock: Clock, builder: DraftBuilder, prompts: Sequence[PromptRecord]) -> None:
        self._request, self._clock, self._builder = request, clock, builder
        self._settings = request.settings
        self._space = _space(request.store, builder)
        self._usable = usable_prompts(builder.engine, prompts)
        self._best: float | None = None

    def run(self) -> SearchOutcome:
        """Runs the parts of the search in their order."""
        header = check_resumable(self._request.work, self._identity()) if self._request.resume else None
        places = [self._request.work / LATENCY, *self._request.known_latency]
        known = find_latency(self._builder, places, has_own_weights=self._space.has_own_weights)
        self._prompts = self._plan(header, known)
        if self._settings.sampled_tokens is None:
            self._settings = dataclasses.replace(self._settings, sampled_tokens=self._prompts.sampled_tokens)
        with self._clock.part("texts"):
            texts = prepare_texts(
                self._request.work,
                self._builder,
                self._prompts.search,
                self._settings,
                self._teller("writing calibration texts"),
                is_begun=header is not None,
            )
        with self._clock.part("latency"):
            self._tell("measuring the engines", 0, 1)
            table = prepare_latency(self._request.work, self._builder, self._space, texts, self._settings, known=known)
        with ThreadPoolExecutor(self._workers()) as pool:
            return self._search(texts, table, pool)

    def _plan(self, header: Header | None, known: LatencyTable | None) -> CalibrationPlan:
        """Returns the calibration plan: the resumed run's, or as much text as time and memory afford."""
        if header is not None:
            return repeat_plan(self._usable, header)
        engine = self._builder.engine
        ids = [engine.encode(prompt.prompt) for prompt in self._usable]
        step = time_step(self._builder, ids[0]) if known is None else known.rows[0].verify[0]
        resources = Resources(
            step=step,
            budget=self._settings.budget_seconds,
            memory=available_memory(),
            position_bytes=engine.artifact.manifest.kv.bytes_per_token(),
            spent=self._clock.elapsed(),
            has_own_weights=self._space.has_own_weights,
        )
        return plan_calibration(self._usable, [len(one) for one in ids], self._settings, resources)

    def _search(self, texts: Sequence[CachedText], table: LatencyTable, pool: ThreadPoolExecutor) -> SearchOutcome:
        costs = CostModel(table)
        objective = Objective(costs, self._settings.weights, each_with(pool))
        plain = objective.plain_seconds_per_token([cached.text for cached in texts])
        header = self._header(texts, table, 1 / plain)
        reserve = 5 + final_reserve(len(self._prompts.final), self._settings, plain, self._settings.budget_seconds)
        if self._clock.left() - reserve <= 0:
            raise ConfigError(
                f"the budget of {self._settings.budget} is too small for one trial: {self._clock.elapsed():.0f} s went into the"
                f" calibration texts and the latency table, and timing the finalists needs {reserve:.0f} s",
                f"give at least {math.ceil((self._clock.elapsed() + reserve) * 1.5)}s",
            )
        with SearchWriter(self._request.work, header, resume=self._request.resume) as writer:
            evaluator = Evaluator(self._builder, texts, objective, costs, self._decode_settings)
            limits = Limits(trials=self._settings.trials, reserve=reserve)
            explorer = Explorer(evaluator, writer, self._clock, limits, self._space, self._on_trial)
            warm_starts = WarmStarts(
                builder=self._builder,
                space=self._space,
                texts=texts,
                costs=costs,
                clock=self._clock,
                writer=writer,
                tell=self._teller,
            )
            warm_starts.run(explorer, [(start.source, self._started(start)) for start in self._request.starts])
            explorer.follow_ax(self._settings)
            return self._finish(explorer, writer, header, costs)

    def _started(self, start: Start) -> Candidate:
        """Returns the draft to try first, without own weights, and with a warning, if these do not fit."""
        size = sum(size for part, size in self._space.sizes.items() if is_in(part, start.int4))
        fits = not start.int4 or (self._space.has_own_weights and size <= self._space.room)
        if not fits:
            logger.warning(
                "the int4 weights of the draft to try first (%s) exceed --draft-memory; the search tries it without them",
                start.source,
            )
        return candidate_of(start.skip, self._space.num_layers, start.int4 if fits else NO_OWN_WEIGHTS)

    def _workers(self) -> int:
        """Returns how many texts are replayed in parallel: one, plus the threads that an engine leaves free.

        Every text has its own KV cache and noise, so the counts do not depend on this number.
        """
        return max(1, default_threads() - self._builder.backend.threads + 1)

    def _finish(self, explorer: Explorer, writer: SearchWriter, header: Header, costs: CostModel) -> SearchOutcome:
        if not explorer.trials:
            raise ConfigError(f"the budget of {self._settings.budget} was used up before the first trial ended", "give a larger --budget")
        warm = explorer.best(warm=True)
        chosen = choose_finalists(explorer.trials, warm, self._settings.finalists)
        finalists: list[Finalist] = []
        if chosen:
            with self._clock.part("finalists"):
                tell = self._teller("timing the finalists")
                finalists = time_finalists(
                    self._builder, chosen, self._prompts.final, self._settings, costs, lambda took: self._clock.left() > took, tell
                )
        for finalist in finalists:
            writer.write(finalist)
        result = conclude(explorer.trials, finalists, warm, self._clock.parts(), ax_error=explorer.ax_error)
        writer.write(result)
        trials = {trial.index: trial for trial in explorer.trials}
        fastest = max(finalists, key=lambda f: f.speedup, default=None)
        closest = None if fastest is None else trials[fastest.trial]
        return SearchOutcome(
            header=header,
            result=result,
            winner=None if result.trial is None else trials[result.trial],
            closest=closest,
            finalists=tuple(finalists),
            num_trials=len(explorer.trials),
        )

    def _identity(self) -> dict[str, Any]:
        manifest = self._builder.engine.artifact.manifest
        return search_identity(manifest, self._settings, self._builder.backend, int(self._space.room))

    def _header(self, texts: Sequence[CachedText], table: LatencyTable, plain: float) -> Header:
        return Header(
            **self._identity(),
            model=self._builder.engine.artifact.manifest.model.source,
            calibration_sha256=calibration_digest([c.text for c in texts], self._prompts.final),
            search_prompts=len(self._prompts.search),
            final_prompts=len(self._prompts.final),
            sampled_tokens=self._settings.tokens_of(SAMPLED),
            greedy_tokens=self._settings.tokens_of(GREEDY),
            latency_sha256=latency_digest(table),
            trials=self._settings.trials,
            plain=plain,
        )

    def _decode_settings(self, text: CalibrationText) -> DecodeSettings:
        return self._builder.engine.settings(self._settings.decoding(text.kind, text.seed))

    def _on_trial(self, done: int, total: int, best: float | None) -> None:
        self._best = best
        self._tell("trying candidates", done, total)

    def _teller(self, part: str) -> Callable[[int, int], None]:
        return lambda done, total: self._tell(part, done, total)

    def _tell(self, part: str, done: int, total: int) -> None:
        if self._request.progress is not None:
            left = self._clock.left()
            self._request.progress(Progress(part=part, done=done, total=total, best=self._best, seconds_left=left))


def _space(store: LowBitStore | None, builder: DraftBuilder) -> DraftSpace:
    if store is None:
        return DraftSpace(num_layers=builder.num_layers)
    return DraftSpace(num_layers=builder.num_layers, sizes=bytes_of_parts(builder.verify), room=store.room)
