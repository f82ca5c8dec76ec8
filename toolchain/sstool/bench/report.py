"""The result of a bench run as typed records, and as the JSON object that `bench --json` prints."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from sstool.bench.environment import Environment
from sstool.validation.lossless import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Median, least and largest of a few measurements."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Returns the spread of `values`; None where there are none."""
        return cls(median=statistics.median(values), min=min(values), max=max(values)) if values else None


@dataclass(frozen=True, kw_only=True, slots=True)
class IdenticalCounts:
    """How many runs gave plain's tokens, gave them but for near ties, or did not; the sum is the number of runs."""

    yes: int
    near_tie: int
    no: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRow:
    """One prompt run once in one mode.

    Attributes:
        id: the prompt's name in its file.
        repeat: 0-based.
        mode: `plain` or `speculative`.
        tokens: tokens after the first, so that tokens / decode_s is the speed.
        decode_s: wall seconds from the first token to the last.
        identical: against plain in the same repeat; None for plain, for rejection sampling, and where plain was not run.
    """

    id: str
    repeat: int
    mode: str
    tokens: int
    decode_s: float
    identical: Verdict | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeReport:
    """What one mode did over all prompts and repeats.

    Attributes:
        mode: `plain` or `speculative`.
        tokens_per_second: per repeat, the prompts' tokens over the sum of their decode times; None if no run had two tokens.
        ratio_to_plain: the same, over plain's in the same repeat; None for plain, and where plain was not run.
        ratio_interval_95: paired bootstrap over prompts; None as above, or with fewer than two prompts.
        acceptance_rate: accepted / proposed over everything; None if nothing was proposed.
        tokens_per_round: emitted / rounds over everything; None if there were no rounds.
        host_overhead: 1 - time inside the engines' run call / decode time, over everything.
        prefill_s: median over runs of the seconds to the first token.
        identical: None for plain, for rejection sampling, and where plain was not run.
        prompts: runs counted: prompts x repeats, refused ones left out.
        refused: prompts of the file that are empty or do not fit the context.
    """

    mode: str
    tokens_per_second: Spread | None
    ratio_to_plain: Spread | None
    ratio_interval_95: tuple[float, float] | None
    acceptance_rate: float | None
    tokens_per_round: float | None
    host_overhead: float | None
    prefill_s: float
    identical: IdenticalCounts | None
    prompts: int
    refused: int


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """All that `sstool bench` measured.

    Attributes:
        environment: machine, versions, threads, packing.
        settings: the completed decoding settings, JSON-ready, with `repeat`.
        runs: one a mode, plain first.
        per_prompt: one a prompt, repeat and mode, in the order they ran.
    """

    environment: Environment
    settings: Mapping[str, object]
    runs: tuple[ModeReport, ...]
    per_prompt: tuple[PromptRow, ...]

    @property
    def num_differing(self) -> int:
        """How many runs gave other tokens than plain decoding, near ties left out."""
        return sum(run.identical.no for run in self.runs if run.identical is not None)

    def to_json(self) -> dict[str, object]:
        """Returns the object that `bench --json` prints; times in seconds, rates in tokens a second."""
        return {
            "environment": self.environment.to_json(),
            "settings": dict(self.settings),
            "runs": [asdict(run) for run in self.runs],
            "per_prompt": [asdict(row) for row in self.per_prompt],
        }
