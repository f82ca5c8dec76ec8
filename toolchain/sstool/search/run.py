"""A whole search: texts, latency table, warm starts, Ax, finalists, and the result, all of it written down as it comes."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import onnxruntime as ort

from ssruntime.artifact import VERIFY_GRAPH, WEIGHTS, SkipSet
from ssruntime.config import DecodeSettings
from ssruntime.engine import checked_threads, load
from ssruntime.errors import ConfigError
from ssruntime.machine import available_memory, cpu_model, default_threads
from sstool.prompts import PromptRecord, read_prompts
from sstool.search.budget import Allotment, Means, allot, final_reserve, repeat_allotment
from sstool.search.clock import Clock
from sstool.search.drafts.builder import Candidates
from sstool.search.drafts.space import Bits, bits_of
from sstool.search.explore import Explorer, Limits, best_of
from sstool.search.finals.conclude import conclude
from sstool.search.finals.finalists import choose_finalists, time_finalists
from sstool.search.log.records import FORMAT, LATENCY, Finalist, Header, LatencyTable, Result, Trial
from sstool.search.log.write import SearchWriter, check_resumable
from sstool.search.prepare import find_latency, latency_digest, prepare_latency, prepare_texts
from sstool.search.scoring.evaluate import Evaluator
from sstool.search.scoring.objective import Objective, each_with
from sstool.search.settings import DEFAULT_CALIBRATION, SearchSettings
from sstool.search.sources.dynamic_programme import LEVELS, cosine_front, front_sets
from sstool.search.sources.leave_one_out import cut, cuts, influence_order, measure_influence
from sstool.search.sources.patterns import default_start, every_other, middle_blocks
from sstool.search.speed_model.costs import CostModel
from sstool.search.speed_model.measure import time_step
from sstool.search.texts.make import (
    GREEDY,
    KINDS,
    SAMPLED,
    CachedText,
    CalibrationText,
    calibration_digest,
    decode_settings,
    tokens_of,
    usable_prompts,
    weight_of,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

_WARM_SHARE: Final = 0.12
"""Of the budget: what one kind of warm start may cost to find."""
_REFINED: Final = 0.05
"""How far from the best cut two more are tried, as a part of the sublayers."""
_INFLUENCE_PASSES: Final = 8


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a search is.

    Attributes:
        part: what is being done.
        done: how much of that.
        total: of how much.
        best: modelled speed-up of the best candidate so far.
        seconds_left: of the budget; infinite where there is none.
    """

    part: str
    done: int
    total: int
    best: float | None
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What to search.

    Attributes:
        folder: the artifact, whose verify engine and weights the candidates share.
        work: the folder of the running search; made if it is not there.
        settings: how to search.
        starts: skip sets to try first, with their source: `recipe` or `earlier`.
        known_latency: where earlier searches may have left a latency table, used if it is this machine's and this model's.
        threads: of an engine; None for the default.
        resume: go on with what is in `work`.
        progress: told how far the search is.
    """

    folder: Path
    work: Path
    settings: SearchSettings
    starts: tuple[tuple[str, SkipSet], ...] = ()
    known_latency: tuple[Path, ...] = ()
    threads: int | None = None
    resume: bool = False
    progress: Callable[[Progress], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a search.

    Attributes:
        header: what was searched.
        result: what came of it.
        winner: the trial that won; None where nothing beat plain decoding.
        closest: the trial of the fastest finalist, the winner or not; None where none was timed.
        finalists: as they were timed.
        num_trials: candidates that were tried.
    """

    header: Header
    result: Result
    winner: Trial | None
    closest: Trial | None
    finalists: tuple[Finalist, ...]
    num_trials: int


def run_search(request: SearchRequest) -> Outcome:
    """Searches, and leaves `trials.jsonl` and `latency.json` in the work folder.

    Raises:
        PromptError: if the calibration prompts cannot be used.
        RecipeError: if the search to be resumed is another one.
        ConfigError: if the budget is too small for one trial.
        ArtifactError: if the artifact cannot be loaded.
    """
    clock = Clock(request.settings.budget_seconds)
    request.work.mkdir(parents=True, exist_ok=True)
    prompts = read_calibration(request.settings)
    with load(request.folder, threads=request.threads, max_context=None, max_sequences=1, draft=False) as engine:
        return _Search(request, clock, Candidates(engine), prompts).run()


def check_search(settings: SearchSettings, threads: int | None) -> None:
    """Finds out what is wrong with what a search is given, without an artifact.

    Raises:
        PromptError: if the calibration file cannot be read, or a line of it is no prompt.
        ConfigError: if the number of threads is out of its range.
    """
    # A pipe can be read once only, and is left to the search.
    if settings.calibration is None or not Path(settings.calibration).exists() or Path(settings.calibration).is_file():
        read_calibration(settings)
    checked_threads(threads)


def read_calibration(settings: SearchSettings) -> list[PromptRecord]:
    """Returns the calibration prompts.

    Raises:
        PromptError: if the file cannot be read, or a line of it is no prompt.
    """
    return read_prompts(Path(settings.calibration) if settings.calibration else DEFAULT_CALIBRATION)


class _Search:
    """One search under way: what its parts share."""

    def __init__(self, request: SearchRequest, clock: Clock, candidates: Candidates, prompts: Sequence[PromptRecord]) -> None:
        self._request, self._clock, self._candidates = request, clock, candidates
        self._settings = request.settings
        self._num_layers = candidates.num_layers
        self._usable = usable_prompts(candidates.engine, prompts)
        self._best: float | None = None

    def run(self) -> Outcome:
        """Goes through the parts in their order."""
        header = check_resumable(self._request.work, self._identity()) if self._request.resume else None
        known = find_latency(self._candidates, [self._request.work / LATENCY, *self._request.known_latency])
        self._prompts = self._allot(header, known)
        if self._settings.sampled_tokens is None:
            self._settings = dataclasses.replace(self._settings, sampled_tokens=self._prompts.sampled_tokens)
        with self._clock.part("texts"):
            texts = prepare_texts(
                self._request.work,
                self._candidates,
                self._prompts.search,
                self._settings,
                self._teller("writing calibration texts"),
                is_begun=header is not None,
            )
        with self._clock.part("latency"):
            self._tell("measuring the engines", 0, 1)
            table = prepare_latency(self._request.work, self._candidates, texts, self._settings, known=known)
        with ThreadPoolExecutor(self._workers()) as pool:
            return self._search(texts, table, pool)

    def _allot(self, header: Header | None, known: LatencyTable | None) -> Allotment:
        """Returns the prompts to use: those of the run that is gone on with, or what can be afforded."""
        if header is not None:
            return repeat_allotment(self._usable, header)
        engine = self._candidates.engine
        ids = [engine.encode(prompt.prompt) for prompt in self._usable]
        step = time_step(self._candidates, ids[0]) if known is None else known.rows[0].verify[0]
        means = Means(
            step=step,
            budget=self._settings.budget_seconds,
            memory=available_memory(),
            position_bytes=engine.artifact.manifest.kv.bytes_per_token(),
            spent=self._clock.elapsed(),
        )
        return allot(self._usable, [len(one) for one in ids], self._settings, means)

    def _search(self, texts: Sequence[CachedText], table: LatencyTable, pool: ThreadPoolExecutor) -> Outcome:
        costs = CostModel(table)
        objective = Objective(costs, {kind: weight_of(self._settings, kind) for kind in KINDS}, each_with(pool))
        plain = objective.plain_seconds_per_token([cached.text for cached in texts])
        header = self._header(texts, table, 1 / plain)
        reserve = 5 + final_reserve(len(self._prompts.final), self._settings, plain, self._settings.budget_seconds)
        if self._clock.left() - reserve <= 0:
            raise ConfigError(
                f"the budget of {self._settings.budget} is too small for one trial: {self._clock.elapsed():.0f} s went into the texts and"
                f" the latency table, and the finalists need {reserve:.0f} s",
                f"give at least {math.ceil((self._clock.elapsed() + reserve) * 1.5)}s",
            )
        with SearchWriter(self._request.work, header, resume=self._request.resume) as writer:
            evaluator = Evaluator(self._candidates, texts, objective, costs, self._decode_settings)
            limits = Limits(trials=self._settings.trials, reserve=reserve)
            explorer = Explorer(evaluator, writer, self._clock, limits, self._num_layers, self._on_trial)
            self._warm_up(explorer, writer, texts, costs)
            explorer.follow_ax(self._settings)
            return self._finish(explorer, writer, header, costs)

    def _workers(self) -> int:
        """Returns how many texts a candidate is run over at a time: whatever threads of the machine its engine leaves free, and one.

        Every text has a cache and noise of its own, so the counts are the same for any number.
        """
        return max(1, default_threads() - self._candidates.backend.threads + 1)

    def _warm_up(self, explorer: Explorer, writer: SearchWriter, texts: Sequence[CachedText], costs: CostModel) -> None:
        """Tries everything that there is a reason for."""
        num_layers = self._num_layers
        for source, skip in self._request.starts:
            explorer.consider(source, [bits_of(skip, num_layers)])
        explorer.consider("every-other", [default_start(num_layers), *every_other(num_layers)])
        explorer.consider("block", middle_blocks(num_layers))
        verify = costs.verify(len(texts[0].text.prompt))[-1]
        if self._clock.affords(LEVELS * 4 * verify, _WARM_SHARE) and not explorer.is_over():
            explorer.consider("dynamic-programme", self._front(texts, costs))
        if self._clock.affords(2 * num_layers * _INFLUENCE_PASSES * verify, _WARM_SHARE) and not explorer.is_over():
            self._leave_one_out(explorer, writer, texts)

    def _front(self, texts: Sequence[CachedText], costs: CostModel) -> list[Bits]:
        text = texts[0].text
        with self._clock.part("dynamic_programme"):
            shares, tell = costs.shares(len(text.prompt)), self._teller("following hidden states")
            front = _optional("points of the dynamic programme", lambda: cosine_front(self._candidates, text, shares, tell))
        return [] if front is None else front_sets(front)

    def _leave_one_out(self, explorer: Explorer, writer: SearchWriter, texts: Sequence[CachedText]) -> None:
        influence = None if writer.earlier is None else writer.earlier.influence
        if influence is None:
            with self._clock.part("influence"):
                tell = self._teller("leaving out sublayers one by one")
                influence = _optional("the leave-one-out order", lambda: measure_influence(self._candidates, texts, tell))
            if influence is not None:
                writer.write(influence)
        if influence is None:
            return
        order = influence_order(influence)
        best = best_of(explorer.consider("leave-one-out", cuts(order)), 1)
        if best:
            part = len((*best[0].skip.attention, *best[0].skip.mlp)) / len(order)
            explorer.consider("leave-one-out", [cut(order, part - _REFINED), cut(order, part + _REFINED)])

    def _finish(self, explorer: Explorer, writer: SearchWriter, header: Header, costs: CostModel) -> Outcome:
        if not explorer.trials:
            raise ConfigError(f"the budget of {self._settings.budget} ended before the first trial did", "give a larger --budget")
        warm = explorer.best(warm=True)
        chosen = choose_finalists(explorer.trials, warm, self._settings.finalists)
        finalists: list[Finalist] = []
        if chosen:
            with self._clock.part("finalists"):
                tell = self._teller("timing the best for real")
                finalists = time_finalists(
                    self._candidates, chosen, self._prompts.final, self._settings, costs, lambda took: self._clock.left() > took, tell
                )
        for finalist in finalists:
            writer.write(finalist)
        result = conclude(explorer.trials, finalists, warm, self._clock.parts(), ax_error=explorer.ax_error)
        writer.write(result)
        trials = {trial.index: trial for trial in explorer.trials}
        fastest = max(finalists, key=lambda f: f.speedup, default=None)
        closest = None if fastest is None else trials[fastest.trial]
        return Outcome(
            header=header,
            result=result,
            winner=None if result.trial is None else trials[result.trial],
            closest=closest,
            finalists=tuple(finalists),
            num_trials=len(explorer.trials),
        )

    def _identity(self) -> dict[str, Any]:
        """Returns the header's fields that are known before any work is done."""
        manifest = self._candidates.engine.artifact.manifest
        return {
            "format": FORMAT,
            "num_layers": self._num_layers,
            "verify_sha256": manifest.files[VERIFY_GRAPH].sha256,
            "weights_sha256": manifest.files[WEIGHTS].sha256,
            "seed": self._settings.seed,
            "batch": self._settings.batch,
            "weights": {kind: weight_of(self._settings, kind) for kind in KINDS},
            "cpu": cpu_model(),
            "threads": self._candidates.backend.threads,
            "onnxruntime": ort.__version__,
        }

    def _header(self, texts: Sequence[CachedText], table: LatencyTable, plain: float) -> Header:
        return Header(
            **self._identity(),
            model=self._candidates.engine.artifact.manifest.model.source,
            calibration_sha256=calibration_digest([c.text for c in texts], self._prompts.final),
            search_prompts=len(self._prompts.search),
            final_prompts=len(self._prompts.final),
            sampled_tokens=tokens_of(self._settings, SAMPLED),
            greedy_tokens=tokens_of(self._settings, GREEDY),
            latency_sha256=latency_digest(table),
            trials=self._settings.trials,
            plain=plain,
        )

    def _decode_settings(self, text: CalibrationText) -> DecodeSettings:
        return decode_settings(self._candidates.engine, self._settings, text.kind, text.seed)

    def _on_trial(self, done: int, total: int, best: float | None) -> None:
        self._best = best
        self._tell("trying candidates", done, total)

    def _teller(self, part: str) -> Callable[[int, int], None]:
        return lambda done, total: self._tell(part, done, total)

    def _tell(self, part: str, done: int, total: int) -> None:
        if self._request.progress is not None:
            left = self._clock.left()
            self._request.progress(Progress(part=part, done=done, total=total, best=self._best, seconds_left=left))


def _optional(name: str, find: Callable[[], T]) -> T | None:
    """Some warm starts cannot be found for some models; the search goes on without them."""
    try:
        return find()
    except Exception as err:  # noqa: BLE001 - ONNX Runtime's share no base
        logger.warning("the search goes on without %s: %s", name, " ".join(str(err).split()))
        return None
