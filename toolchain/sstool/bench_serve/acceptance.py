"""How many draft tokens a server accepted: from its responses, else from its counters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

_PREFIX: Final = "vllm:spec_decode_"
_COUNTERS: Final = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
_SAMPLE: Final = re.compile(
    rf'^{re.escape(_PREFIX)}({"|".join(_COUNTERS)})_total(?:\{{(?:[^"{{}}]|"(?:\\.|[^"\\])*")*\}})?[ \t]+(\S+)', re.MULTILINE
)

Source = Literal["responses", "metrics"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Speculation:
    """What one response says about its draft tokens.

    Attributes:
        num_drafts: number of passes that verified draft tokens (`num_spec_steps` in responses).
        num_draft_tokens: number of tokens proposed.
        num_accepted: number of proposed tokens accepted.
        histogram: number of passes that accepted 0, 1, 2 ... tokens; None if the server gives none.
    """

    num_drafts: int
    num_draft_tokens: int
    num_accepted: int
    histogram: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, object]:
        """Returns the fields under their names in responses."""
        return {
            "num_spec_steps": self.num_drafts,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_draft_tokens": self.num_accepted,
            "acceptance_histogram": self.histogram,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """The draft tokens of all requests of a run.

    Attributes:
        source: `responses`, the sum over the responses that say it; `metrics`, the difference of the
            server's counters, which also count requests of others and of the run those that failed.
        mean_acceptance_length: tokens per verifying pass, the target's own token included:
            1 + accepted / passes.
        draft_acceptance_rate: accepted / proposed; None if nothing was proposed.
        num_drafts: number of verifying passes.
        num_draft_tokens: number of tokens proposed.
        num_accepted_draft_tokens: number of proposed tokens accepted.
        acceptance_histogram: number of passes that accepted 0, 1, 2 ... tokens; None if it is not known for
            all of them.
    """

    source: Source
    mean_acceptance_length: float
    draft_acceptance_rate: float | None
    num_drafts: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    acceptance_histogram: tuple[int, ...] | None


def read_speculation(chunk: Mapping[str, Any]) -> Speculation | None:
    """Returns what `metrics.speculative_decoding` of a response says; None if it is absent or malformed."""
    metrics = chunk.get("metrics")
    found = metrics.get("speculative_decoding") if isinstance(metrics, Mapping) else None
    if not isinstance(found, Mapping):
        return None
    drafts, proposed, accepted = (_count(found.get(k)) for k in ("num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens"))
    if drafts is None or proposed is None or accepted is None:
        return None
    return Speculation(
        num_drafts=drafts, num_draft_tokens=proposed, num_accepted=accepted, histogram=_histogram(found.get("acceptance_histogram"))
    )


def sum_responses(speculations: Sequence[Speculation]) -> Acceptance | None:
    """Returns the acceptance over several responses; None if no draft was verified."""
    histograms = [s.histogram for s in speculations if s.histogram is not None]
    total = None
    if len(histograms) == len(speculations):
        width = max((len(h) for h in histograms), default=0)
        total = tuple(sum(h[at] for h in histograms if at < len(h)) for at in range(width))
    return _acceptance(
        "responses",
        sum(s.num_drafts for s in speculations),
        sum(s.num_draft_tokens for s in speculations),
        sum(s.num_accepted for s in speculations),
        total,
    )


def read_counters(text: str) -> dict[str, float] | None:
    """Returns the counters of speculative decoding in a page of Prometheus's text format.

    Each is the sum over its labels. None if the page lacks one of them.
    """
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        try:
            sums[name] = sums.get(name, 0.0) + float(value)
        except ValueError:
            return None
    return sums if sums.keys() == set(_COUNTERS) else None


def difference(before: Mapping[str, float] | None, after: Mapping[str, float] | None) -> Acceptance | None:
    """Returns the acceptance between two readings of the counters.

    None if one of them is absent, if no draft was verified between them, or if a counter fell, as it does
    when the server starts again.
    """
    if before is None or after is None:
        return None
    drafts, proposed, accepted = (round(after[name] - before[name]) for name in _COUNTERS)
    return None if min(drafts, proposed, accepted) < 0 else _acceptance("metrics", drafts, proposed, accepted, None)


def _acceptance(source: Source, drafts: int, proposed: int, accepted: int, histogram: tuple[int, ...] | None) -> Acceptance | None:
    if drafts == 0:
        return None
    return Acceptance(
        source=source,
        mean_acceptance_length=1 + accepted / drafts,
        draft_acceptance_rate=accepted / proposed if proposed else None,
        num_drafts=drafts,
        num_draft_tokens=proposed,
        num_accepted_draft_tokens=accepted,
        acceptance_histogram=histogram,
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _histogram(value: object) -> tuple[int, ...] | None:
    """Returns a histogram given as a list, or as an object whose keys are numbers of accepted tokens."""
    if isinstance(value, Mapping):
        keys = [int(key) for key in value if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 4]
        if len(keys) < len(value):
            return None
        value = [value.get(str(at), 0) for at in range(max(keys, default=-1) + 1)]
    if not isinstance(value, list):
        return None
    counts = [_count(entry) for entry in value]
    return tuple(c for c in counts if c is not None) if None not in counts else None
