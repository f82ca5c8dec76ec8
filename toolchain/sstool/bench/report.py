"""The result of a bench run as typed records, and as the JSON object that `bench --json` prints."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from sstool.bench.environment import Environment
from sstool.validation.lossless import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Median, minimum and maximum of several measurements."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Returns the spread of `values`; None if there are none."""
        return cls(median=statistics.median(values), min=min(values), max=max(values)) if values else None


@dataclass(frozen=True, kw_only=True, slots=True)
class IdenticalCounts:
    """Numbers of runs by their tokens, compared with autoregressive decoding (mode `plain`).

    Attributes:
        yes: number of runs with the same tokens.
        near_tie: number of runs with the same tokens except for near ties.
        no: number of runs with other tokens.
    """

    yes: int
    near_tie: int
    no: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRow:
    """One prompt run once in one mode.

    Attributes:
        id: name of the prompt in its file.
        repeat: 0-based number of the repeat.
        mode: the mode of decoding.
        tokens: number of tokens after the first; tokens / decode_s is the speed.
        decode_s: wall seconds from the first token to the last.
        identical: verdict of the comparison with plain decoding in the same repeat; None for plain, for
            rejection sampling, and if plain was not run.
    """

    id: str
    repeat: int
    mode: str
    tokens: int
    decode_s: float
    identical: Verdict | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModeReport:
    """The results of one mode over all prompts and repeats.

    Attributes:
        mode: the mode of decoding.
        tokens_per_second: speed of each repeat: tokens of all prompts over their summed decode times; None if
            no run had two tokens.
        ratio_to_plain: speed-up of each repeat over plain decoding in the same repeat; None for plain, and if
            plain was not run.
        ratio_interval_95: 95 % interval of the speed-up by a paired bootstrap over prompts; None as above, or
            with fewer than two prompts.
        acceptance_rate: accepted / proposed over all runs; None if nothing was proposed.
        tokens_per_round: emitted / rounds over all runs; None if there were no rounds.
        host_overhead: 1 - time inside the engines' run call / decode time, over all runs.
        prefill_s: seconds to the first token, median over all runs.
        identical: comparison with plain decoding; None for plain, for rejection sampling, and if plain was
            not run.
        prompts: number of runs: prompts x repeats, without refused prompts.
        refused: number of prompts that are empty or do not fit the context.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerReport:
    """The results of another engine over the same prompts and repeats, or why there are none.

    Attributes:
        name: name of the peer.
        version: version of its package; None if it does not run.
        missing: why there are no results, in one line; None if there are.
        tokens_per_second: speed of each repeat, as for our modes.
        ours_over_this: speed of our last mode over this one's, of each repeat.
        ours_over_this_95: 95 % interval of that by a paired bootstrap over prompts.
        prefill_s: seconds to the first token, median over all runs.
        same_text: number of prompts for which it gave the tokens of our plain decoding, without
            the last one; None if the text is sampled.
    """

    name: str
    version: str | None = None
    missing: str | None = None
    tokens_per_second: Spread | None = None
    ours_over_this: Spread | None = None
    ours_over_this_95: tuple[float, float] | None = None
    prefill_s: float | None = None
    same_text: int | None = None


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The whole result of `sstool bench`.

    Attributes:
        environment: machine, versions, threads and packing of the weights.
        settings: the completed decoding settings as JSON values, with `repeat`.
        runs: one report per mode, plain first.
        per_prompt: one row per prompt, repeat and mode, in the order of the runs.
        peers: one report per peer asked for.
    """

    environment: Environment
    settings: Mapping[str, object]
    runs: tuple[ModeReport, ...]
    per_prompt: tuple[PromptRow, ...]
    peers: tuple[PeerReport, ...] = ()

    @property
    def num_differing(self) -> int:
        """The number of runs whose tokens differ from plain decoding's, near ties not counted."""
        return sum(run.identical.no for run in self.runs if run.identical is not None)

    def to_json(self) -> dict[str, object]:
        """Returns the object that `bench --json` prints; times in seconds, speeds in tokens per second."""
        return {
            "environment": self.environment.to_json(),
            "settings": dict(self.settings),
            "runs": [asdict(run) for run in self.runs],
            "per_prompt": [asdict(row) for row in self.per_prompt],
            "peers": [asdict(peer) for peer in self.peers],
        }
