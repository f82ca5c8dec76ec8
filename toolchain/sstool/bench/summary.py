"""Summarises the runs of a mode: speed and speed-up per repeat, and a paired bootstrap over prompts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.results import DecodeStats
from sstool.bench.report import IdenticalCounts, ModeReport, Spread
from sstool.validation.lossless import NEAR_TIE, NO, YES, Verdict

_RESAMPLES: Final = 4000
_BOOTSTRAP_SEED: Final = 20240915
"""A constant, so that the same measurements always give the same interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimedRun:
    """One prompt decoded once; `index` is the 0-based position of the prompt in its file."""

    index: int
    stats: DecodeStats

    @property
    def tokens(self) -> int:
        """The number of tokens after the first."""
        return self.stats.emitted - self.stats.discarded


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample(TimedRun):
    """A timed run in one mode of a bench, compared with autoregressive decoding."""

    prompt_id: str
    repeat: int
    mode: str
    identical: Verdict | None


def summarize(mode: str, samples: Sequence[Sample], *, refused: int) -> ModeReport:
    """Returns the report of one mode.

    Args:
        mode: the mode to report.
        samples: all runs of all modes, at least one of them in `mode`.
        refused: number of prompts that could not be run.
    """
    own = [s for s in samples if s.mode == mode]
    plain = [s for s in samples if s.mode == "plain"] if mode != "plain" else []
    stats = [s.stats for s in own]
    return ModeReport(
        mode=mode,
        tokens_per_second=Spread.of(list(_speeds(own).values())),
        ratio_to_plain=Spread.of(ratios(plain, own)),
        ratio_interval_95=ratio_interval(plain, own),
        acceptance_rate=_quotient(sum(s.accepted for s in stats), sum(s.proposed for s in stats)),
        tokens_per_round=_quotient(sum(s.emitted for s in stats), sum(s.rounds for s in stats)),
        host_overhead=_host_overhead(stats),
        prefill_s=statistics.median(s.prefill_s for s in stats),
        identical=_count(own),
        prompts=len(own),
        refused=refused,
    )


def ratio_interval(plain: Sequence[Sample], other: Sequence[Sample]) -> tuple[float, float] | None:
    """Returns the 95 % interval of the speed-up of one mode over autoregressive decoding (mode `plain`).

    The bootstrap draws prompts with replacement and keeps all runs of a prompt together.

    Args:
        plain: samples of plain decoding.
        other: samples of the other mode, of the same prompts.

    Returns:
        The 2.5th and the 97.5th percentile; None with fewer than two prompts, or if nothing was decoded.
    """
    if not ratios(plain, other):
        return None
    return weighted_interval({"": plain}, {"": other}, {"": 1.0})


def weighted_interval(
    base: Mapping[str, Sequence[TimedRun]], other: Mapping[str, Sequence[TimedRun]], shares: Mapping[str, float]
) -> tuple[float, float] | None:
    """Returns the 95 % interval of the speed-up of `other` over `base` on a mix of several kinds of text.

    The speed on the mix is 1 over the weighted mean of the kinds' seconds per token. The bootstrap draws
    prompts with replacement and keeps all runs of a prompt together.

    Args:
        base: runs of the baseline, by kind of text.
        other: runs of the same prompts to compare with it, by kind of text.
        shares: weight of each kind; the weights sum to 1.

    Returns:
        The 2.5th and the 97.5th percentile; None with fewer than two prompts.
    """
    indices = sorted({s.index for runs in base.values() for s in runs} & {s.index for runs in other.values() for s in runs})
    if len(indices) < 2:
        return None
    drawn = np.random.default_rng(_BOOTSTRAP_SEED).integers(len(indices), size=(_RESAMPLES, len(indices)))
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = _paces(base, indices, drawn, shares) / _paces(other, indices, drawn, shares)
    # A draw without decoded tokens of some kind has no finite ratio.
    low, high = np.percentile(quotients[np.isfinite(quotients)], [2.5, 97.5])
    return float(low), float(high)


def _paces(
    samples: Mapping[str, Sequence[TimedRun]], indices: Sequence[int], drawn: NDArray[np.int64], shares: Mapping[str, float]
) -> NDArray[np.float64]:
    """Returns seconds per token for each draw, float64[draws]; not finite if a kind of text has no tokens."""
    paces = np.zeros(len(drawn))
    for kind, share in shares.items():
        sums = np.array([_totals(samples[kind], i) for i in indices], dtype=np.float64)
        tokens, seconds = sums[drawn].sum(axis=1).T
        paces += share * seconds / tokens
    return paces


def _totals(samples: Sequence[TimedRun], index: int) -> tuple[float, float]:
    own = [s for s in samples if s.index == index]
    return sum(s.tokens for s in own), sum(s.stats.decode_s for s in own)


def _speeds(samples: Sequence[Sample]) -> dict[int, float]:
    """Returns tokens per second by repeat, without the repeats in which nothing was decoded."""
    speeds = {}
    for repeat in sorted({s.repeat for s in samples}):
        own = [s for s in samples if s.repeat == repeat]
        tokens, seconds = sum(s.tokens for s in own), sum(s.stats.decode_s for s in own)
        if tokens > 0 and seconds > 0:
            speeds[repeat] = tokens / seconds
    return speeds


def ratios(plain: Sequence[Sample], other: Sequence[Sample]) -> list[float]:
    """Returns the speed of one mode over that of another one, of each repeat."""
    base, speeds = _speeds(plain), _speeds(other)
    return [speeds[r] / base[r] for r in speeds if r in base]


def _host_overhead(stats: Sequence[DecodeStats]) -> float | None:
    share = _quotient(sum(s.engine_s for s in stats), sum(s.decode_s for s in stats))
    return None if share is None else 1.0 - share


def _quotient(over: float, under: float) -> float | None:
    return over / under if under > 0 else None


def _count(samples: Sequence[Sample]) -> IdenticalCounts | None:
    verdicts = [s.identical for s in samples]
    if any(v is None for v in verdicts):
        return None
    return IdenticalCounts(yes=verdicts.count(YES), near_tie=verdicts.count(NEAR_TIE), no=verdicts.count(NO))
