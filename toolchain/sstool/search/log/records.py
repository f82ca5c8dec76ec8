"""What a search writes down: the lines of `trials.jsonl`, each with a `kind`, as typed records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ssruntime.artifact import SkipSet
from sstool.skip_set import SkipSpec

SEARCH_FOLDER: Final = "search"
"""Where an artifact keeps its search."""
TRIALS: Final = "trials.jsonl"
LATENCY: Final = "latency.json"
SKIP_SET: Final = "skip_set.json"
REPORT: Final = "report.html"
TEXTS: Final = "texts.json"
FORMAT: Final = 2
HEADER_KIND: Final = "search"
"""The `kind` of a log's first line."""

COMPLETED: Final = "completed"
STOPPED: Final = "stopped"
FAILED: Final = "failed"

AX: Final = "ax"
EARLIER: Final = "earlier"
"""The source of a draft that the artifact had."""
RANDOM: Final = "random"
SUGGESTED: Final = frozenset({AX, RANDOM})
"""Sources that are no warm starts."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What decoding some text would do: rounds as DESIGN defines them.

    Attributes:
        tokens: tokens that the rounds gave.
        rounds: rounds.
        proposed: tokens drafted.
        accepted: of these positions, the ones that verify agreed with, with the chain's token or an alternative.
        alternatives: tokens verified beside the chains'.
        reached: at index j, rounds that proposed more than j tokens.
        kept: at index j, rounds that had more than j tokens accepted.
    """

    tokens: int = 0
    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    alternatives: int = 0
    reached: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first line: what is searched, and all that the trials depend on (`kind` is `search`).

    Attributes:
        format: of the file.
        model: where the checkpoint came from.
        num_layers: of the model.
        verify_sha256: digest of the verify graph.
        weights_sha256: digest of the weights.
        calibration_sha256: digest of the calibration prompts' text and lengths.
        search_prompts: prompts that candidates were tried on.
        final_prompts: prompts that were kept for timing the finalists.
        sampled_tokens: tokens of each sampled text.
        greedy_tokens: tokens of each greedy text.
        latency_sha256: digest of the latency table.
        seed: of everything that is drawn.
        trials: most trials.
        batch: trials suggested at a time.
        weights: how much each kind of text counts, by its name: `sampled` and `greedy`.
        cpu: the processor's model name.
        threads: of an engine.
        onnxruntime: version.
        plain: modelled tokens per second of plain decoding.
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
    cpu: str
    threads: int
    onnxruntime: str
    plain: float


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How much the model misses each sublayer alone (`kind` is `sensitivity`).

    Attributes:
        attention: by layer, with that attention left out, the mean overlap of the draft's distribution of the next token with the
            model's own: the chance that coupled picks of the two agree.
        mlp: the same of each MLP.
        seconds: what measuring it took.
    """

    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A short run of one candidate by the clock, over the same text as every other's: what the model of speed is held to.

    Nothing in the search depends on it, so that the same seed still gives the same trials.

    Attributes:
        tokens: tokens that the rounds gave.
        measured: tokens per second.
        modelled: tokens per second that the latency table gives the same rounds.
    """

    tokens: int
    measured: float
    modelled: float

    @property
    def ratio(self) -> float:
        """Measured over modelled speed."""
        return self.measured / self.modelled


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate (`kind` is `trial`).

    Attributes:
        index: 0-based, in the order that trials were proposed in.
        source: who proposed it: `recipe`, `earlier`, `leave-one-out`, `block`, `every-other`, `dynamic-programme`, `random` or `ax`.
        status: `completed`; `stopped` after a part of the text, as it could not become the best; `failed`.
        skip: the sublayers left out.
        exit: exit policy, tuned for this set.
        exit_threshold: likewise.
        max_draft: likewise.
        max_alternatives: most alternatives that a drafted token had.
        cost_ratio: a draft step over a plain step, modelled; the mean of the steps that the counts are of.
        counts: by kind of text, with the tuned exit.
        tokens_per_second: modelled, all kinds of text together; None where it failed. A stopped one's is what it would be if it kept,
            over all the text, its distance to the best one over the part.
        speedup: that over plain decoding's.
        timed: a short run by the clock; None where it did not complete, or could not be timed.
        seconds: what building and running the candidate took.
        suggest_seconds: what proposing it took.
        error: why it failed.
    """

    index: int
    source: str
    status: str
    skip: SkipSet
    exit: str | None = None
    exit_threshold: float | None = None
    max_draft: int | None = None
    max_alternatives: int | None = None
    cost_ratio: float | None = None
    counts: dict[str, Counts] = field(default_factory=dict)
    tokens_per_second: float | None = None
    speedup: float | None = None
    timed: Timed | None = None
    seconds: float = 0.0
    suggest_seconds: float = 0.0
    error: str | None = None

    def spec(self) -> SkipSpec:
        """Returns the skip set and its exit as a skip-set file has them."""
        return SkipSpec(
            attention=self.skip.attention,
            mlp=self.skip.mlp,
            exit=self.exit,
            exit_threshold=self.exit_threshold,
            max_draft=self.max_draft,
            max_alternatives=self.max_alternatives,
        )


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A candidate that was timed for real, in turns with plain decoding (`kind` is `finalist`).

    Attributes:
        trial: its index.
        modelled: modelled tokens per second on the same text.
        measured: tokens per second.
        plain: plain decoding's, measured in the same run.
        speedup: measured / plain.
        interval_95: of the speed-up, a paired bootstrap over prompts.
        acceptance_rate: accepted / proposed.
        tokens_per_round: emitted / rounds.
        prompts: prompts decoded, one that was decoded several times as often.
    """

    trial: int
    modelled: float
    measured: float
    plain: float
    speedup: float
    interval_95: tuple[float, ...] | None
    acceptance_rate: float | None
    tokens_per_round: float | None
    prompts: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """The last line: what came of it (`kind` is `result`).

    Attributes:
        trial: index of the winner; None where nothing beat plain decoding.
        speedup: the winner's, measured.
        best_warm_start: index of the warm start with the best modelled speed.
        gain: modelled speed of the best trial / that of the best warm start - 1.
        remark: what is to be said of it in a sentence.
        seconds: where the time went, since the search was begun or resumed: `texts`, `latency`, `sensitivity`, `dynamic_programme`,
            `builder`, `ax`, `finalists`, `total`.
    """

    trial: int | None
    speedup: float | None
    best_warm_start: int | None
    gain: float | None
    remark: str
    seconds: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """Seconds of each part at one context length.

    Attributes:
        context: positions before the step.
        verify: at index w - 1, one verify pass of w positions with judging it; index 0 is a plain step.
        draft_base: of a draft's size, what embedding, norms, head and host work add.
        attention: by layer, what its attention adds.
        mlp: by layer, what its MLP adds.
        sizes: of some drafts, rising from one that keeps little to one that keeps nearly all.
        first: for each of these drafts, what its first step, the one after a verify pass, takes as a part of its size; between them the
            part is interpolated.
        later: the same of any later step.
    """

    context: int
    verify: tuple[float, ...]
    draft_base: float
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    sizes: tuple[float, ...]
    first: tuple[float, ...]
    later: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """What the engines of one machine take, measured once: the content of `latency.json`.

    Attributes:
        format: of the file.
        weights_sha256: digest of the model's weights.
        verify_sha256: digest of the verify graph: another one may take another time.
        cpu: the processor's model name.
        threads: of an engine.
        onnxruntime: version.
        rows: by context length, rising; between them costs are interpolated.
        fit_error: largest relative error of a modelled step, a draft's first or a later one, against the probe drafts' own.
    """

    format: int
    weights_sha256: str
    verify_sha256: str
    cpu: str
    threads: int
    onnxruntime: str
    rows: tuple[LatencyRow, ...]
    fit_error: float


def best_of(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Returns the completed trials with the highest modelled speeds, best first, at most `count` of them."""
    completed = (trial for trial in trials if trial.status == COMPLETED)
    return sorted(completed, key=lambda trial: trial.tokens_per_second or 0.0, reverse=True)[:count]
