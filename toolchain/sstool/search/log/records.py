"""The records of a search: the lines of `trials.jsonl`, each of them with a `kind`, and the latency table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ssruntime.artifact import LowBitSet, SkipSet
from ssruntime.planning.acceptance import Calibration
from ssruntime.stopping import StoppingRule
from sstool.skip_set import SkipSpec

SEARCH_FOLDER: Final = "search"
"""Name of the folder in which an artifact keeps its search."""
TRIALS: Final = "trials.jsonl"
LATENCY: Final = "latency.json"
SKIP_SET: Final = "skip_set.json"
REPORT: Final = "report.html"
TEXTS: Final = "texts.json"
FORMAT: Final = 4

COMPLETED: Final = "completed"
STOPPED: Final = "stopped"
FAILED: Final = "failed"

AX: Final = "ax"
EARLIER: Final = "earlier"
"""Source of the draft that the artifact had before the search."""
RANDOM: Final = "random"
"""Source of sets drawn at random for comparisons; no search draws any."""
SUGGESTED: Final = frozenset({AX, RANDOM})
"""Sources whose candidates are not warm starts."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of decoding some text in rounds of propose, verify and accept.

    Attributes:
        tokens: number of tokens emitted.
        rounds: number of rounds.
        proposed: number of tokens in the draft sequences, without alternatives.
        accepted: number of those positions at which verify accepted the drafted token or an alternative to
            it.
        alternatives: number of alternatives verified (side branches of the token tree, one token long).
        reached: at index j, the number of rounds that proposed more than j tokens.
        kept: at index j, the number of rounds in which more than j tokens were accepted.
    """

    tokens: int = 0
    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    alternatives: int = 0
    reached: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()


def shares_of(weights: Mapping[str, float], kinds: Iterable[str]) -> dict[str, float]:
    """Returns the weights of some kinds of text, scaled to a sum of 1; equal weights if all are 0."""
    chosen = {kind: weights.get(kind, 0.0) for kind in kinds}
    total = sum(chosen.values())
    return {kind: weight / total if total else 1 / len(chosen) for kind, weight in chosen.items()}


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first line: what is searched, and everything that the trials depend on (`kind` is `search`).

    Attributes:
        format: format number of the log.
        model: source of the checkpoint.
        num_layers: number of layers of the model.
        verify_sha256: digest of the verify graph.
        weights_sha256: digest of the weights.
        calibration_sha256: digest of the calibration texts and the held-out prompts.
        search_prompts: number of prompts whose texts candidates are scored on.
        final_prompts: number of prompts held out for timing the finalists.
        sampled_tokens: length of each sampled text, in tokens.
        greedy_tokens: length of each greedy text, in tokens.
        latency_sha256: digest of the latency table.
        seed: seed of everything random in the search.
        trials: largest number of trials.
        batch: number of candidates that Ax suggests at a time.
        weights: weight of each kind of text, `sampled` and `greedy`.
        draft_memory: most bytes of a draft's own weights.
        cpu: model name of the processor.
        threads: number of threads of each engine.
        onnxruntime: version of ONNX Runtime.
        plain: modelled tokens per second of autoregressive decoding (mode `plain`).
    """

    format: int
    model: str
    num_layers: int
    verify_sha256: str
    weights_sha256: str
    calibration_sha256: str
    search_prompts: int
    final_prompts: int
    sampled_tokens: int
    greedy_tokens: int
    latency_sha256: str
    seed: int
    trials: int
    batch: int
    weights: dict[str, float]
    draft_memory: int
    cpu: str
    threads: int
    onnxruntime: str
    plain: float


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The leave-one-out sensitivity of the sublayers (`kind` is `influence`).

    Attributes:
        attention: by layer, the mean overlap of the model's next-token distribution with that of a draft that
            skips only this attention, 0 to 1: the highest probability with which coupled samples of the two
            agree.
        mlp: the same for each MLP.
        seconds: seconds that the measurement took.
    """

    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A short run of one candidate by the clock, on one text for all candidates, to check the speed model.

    Nothing in the search depends on it, so that the same seed gives the same trials.

    Attributes:
        tokens: number of tokens emitted.
        measured: measured tokens per second.
        modelled: modelled tokens per second of the same rounds.
    """

    tokens: int
    measured: float
    modelled: float

    @property
    def ratio(self) -> float:
        """The measured speed over the modelled speed."""
        return self.measured / self.modelled


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate (`kind` is `trial`).

    Attributes:
        index: number of the trial, counted from 0 in the order in which candidates were tried.
        source: source of the candidate: `recipe`, `earlier`, `variant`, `whole`, `leave-one-out`,
            `block`, `every-other`, `dynamic-programme`, `random` or `ax`.
        status: `completed`; `stopped` after a part of the texts, because it was not promising; or `failed`.
        skip: sublayers that the draft skips.
        int4: parts for which the draft has int4 weights of its own.
        stopping: stopping rule, tuned for this draft; None if the trial failed.
        max_alternatives: largest number of alternatives to a drafted token.
        cost_ratio: modelled time of a draft step over that of an autoregressive step (mode `plain`); the mean
            over the draft steps in `counts`.
        counts: counts of the decoded text with the tuned stopping rule, by kind of text.
        tokens_per_second: modelled speed over all kinds of text; None if the trial failed. For a stopped
            trial it is extrapolated: its speed relative to the best candidate's on the same part of the
            texts, times the best candidate's speed over all texts.
        speedup: modelled speed over that of autoregressive decoding, extrapolated alike.
        timed: short run by the clock; None if the trial did not complete or could not be timed.
        calibration: how the draft's confidence relates to acceptance on the calibration texts; None if the
            trial did not complete.
        seconds: seconds that building and running the candidate took.
        suggest_seconds: seconds that proposing it took.
        error: reason of the failure; None if the trial did not fail.
    """

    index: int
    source: str
    status: str
    skip: SkipSet
    int4: LowBitSet = field(default_factory=LowBitSet)
    stopping: StoppingRule | None = None
    max_alternatives: int | None = None
    cost_ratio: float | None = None
    counts: dict[str, Counts] = field(default_factory=dict)
    tokens_per_second: float | None = None
    speedup: float | None = None
    timed: Timed | None = None
    calibration: Calibration | None = None
    seconds: float = 0.0
    suggest_seconds: float = 0.0
    error: str | None = None

    def score_error(self) -> float:
        """Returns the standard error of `speedup`, which is 0 for a trial that was run over all texts.

        A stopped trial's score is a mean over the rounds of a part of the texts. The number of tokens in a
        round varies by about its mean, so the error is the score over the root of their number.
        """
        rounds = sum(counts.rounds for counts in self.counts.values())
        return self.speedup / math.sqrt(rounds) if self.status == STOPPED and self.speedup is not None and rounds else 0.0

    def spec(self) -> SkipSpec:
        """Returns the draft and its stopping rule as they are written to a skip-set file."""
        return SkipSpec(
            attention=self.skip.attention,
            mlp=self.skip.mlp,
            int4=self.int4 or None,
            stopping=self.stopping,
            max_alternatives=self.max_alternatives,
        )


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A candidate, decoding in mode `auto`, timed head to head with mode `plain` (`kind` is `finalist`).

    Attributes:
        trial: index of the candidate's trial.
        modelled: modelled tokens per second on the same text.
        measured: measured tokens per second.
        plain: measured tokens per second of autoregressive decoding on the same prompts.
        speedup: measured / plain.
        interval_95: 95 % confidence interval of the speed-up, from a paired bootstrap over prompts.
        by_kind: speed-up on each kind of text alone.
        acceptance_rate: accepted / proposed.
        tokens_per_round: emitted / rounds.
        prompts: number of prompts decoded; a prompt that is decoded several times counts each time.
    """

    trial: int
    modelled: float
    measured: float
    plain: float
    speedup: float
    interval_95: tuple[float, ...] | None
    by_kind: dict[str, float]
    acceptance_rate: float | None
    tokens_per_round: float | None
    prompts: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """The last line: the conclusion of the search (`kind` is `result`).

    Attributes:
        trial: index of the winner's trial; None if no draft beat autoregressive decoding (mode `plain`).
        speedup: measured speed-up of the winner, over all kinds of text; None without a winner.
        by_kind: its speed-up on each kind of text alone; empty without a winner.
        best_warm_start: index of the warm start with the best modelled speed; None if no warm start
            completed.
        gain: modelled speed of the best trial / that of the best warm start - 1; None without a warm start.
        remark: the conclusion in words.
        seconds: seconds of each part since the search began or resumed: `texts`, `latency`, `influence`,
            `dynamic_programme`, `candidates`, `ax`, `finalists`, and `total`.
    """

    trial: int | None
    speedup: float | None
    by_kind: dict[str, float]
    best_warm_start: int | None
    gain: float | None
    remark: str
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class DraftCosts:
    """The costs of draft steps over one kind of weights, in seconds.

    Attributes:
        base: what embedding, norms, LM head and host work add to a draft's size (see `speed_model.fit`).
        attention: by layer, what its attention adds to a draft's size.
        mlp: by layer, what its MLP adds to a draft's size.
        sizes: sizes of some drafts, ascending from one that keeps little to one that keeps nearly all.
        first: for each of these drafts, seconds of its first step after a verify pass, divided by its size.
            The factors of other drafts are interpolated by size.
        later: the same for any later step.
    """

    base: float
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    sizes: tuple[float, ...]
    first: tuple[float, ...]
    later: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """The costs at one context length, in seconds.

    Attributes:
        context: context length, in positions before the step.
        verify: at index k, seconds of a pass over k + 1 tokens, acceptance included; index 0 is an
            autoregressive step (mode `plain`).
        draft: costs of draft steps over shared weights.
        int4: costs of draft steps over int4 weights, the LM head's too; None if no draft may have any.
    """

    context: int
    verify: tuple[float, ...]
    draft: DraftCosts
    int4: DraftCosts | None = None


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """The latency table of one model on one machine: the content of `latency.json`.

    Attributes:
        format: format number of the file.
        weights_sha256: digest of the model's weights.
        verify_sha256: digest of the verify graph, because other graphs may take other times.
        cpu: model name of the processor.
        threads: number of threads of each engine.
        onnxruntime: version of ONNX Runtime.
        rows: costs by ascending context length; those between are interpolated.
        fit_error: largest relative error of a modelled draft step, first or later, over the probe drafts.
    """

    format: int
    weights_sha256: str
    verify_sha256: str
    cpu: str
    threads: int
    onnxruntime: str
    rows: tuple[LatencyRow, ...]
    fit_error: float


def speeds_in_words(by_kind: Mapping[str, float]) -> str:
    """Returns speed-ups by kind of text, such as `1.62 x plain sampled, 1.90 x plain greedy`."""
    return ", ".join(f"{speedup:.2f} x plain {kind}" for kind, speedup in by_kind.items())


def best_of(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Returns the completed trials with the highest modelled speeds, best first, at most `count` of them."""
    completed = (trial for trial in trials if trial.status == COMPLETED)
    return sorted(completed, key=lambda trial: trial.tokens_per_second or 0.0, reverse=True)[:count]


KIND_OF: Final[dict[type, str]] = {Header: "search", Sensitivity: "influence", Trial: "trial", Finalist: "finalist", Result: "result"}
"""The `kind` of each record's line in `trials.jsonl`; the header is its first line."""
