"""Compares a speculative run with autoregressive decoding (mode `plain`), and tells near ties from defects.

Where the kernels pass the bit test (see `sstool.validation.bits`), every difference is a `no`. Where they
fail it, passes of different query lengths round differently, so two tokens that are almost equally good can
swap. A difference is then a `near_tie` only if all of this holds:

* a replay with the run's own passes, rejected proposals included, gives the run's token;
* a replay with one position per pass gives the plain token;
* in both replays the decision scores of the two tokens (for a token that a filter dropped: its score and the
  filter's cut) differ by at most the noise between query lengths, which is 1e-4 in fp32.

The run is then restarted after the plain token, and the comparison continues. Every other difference is a
`no`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from ssruntime.backends.base import Backend
from ssruntime.config import DecodeSettings, GenerationConfig
from ssruntime.engine import Engine
from ssruntime.results import Completion, Trace
from ssruntime.text.prompt import Prompt
from sstool.validation.near_tie import Row, Standing, decide, standing

Verdict = Literal["yes", "near_tie", "no"]

YES: Final[Verdict] = "yes"
NEAR_TIE: Final[Verdict] = "near_tie"
NO: Final[Verdict] = "no"


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedRun:
    """The tokens of a completion and the passes that produced them."""

    token_ids: tuple[int, ...]
    trace: Trace


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A position at which a run and plain decoding gave different tokens.

    Attributes:
        index: 0-based position in the completion.
        run_token: token of the run; None if the run had already ended.
        plain_token: token of plain decoding; None if it had already ended.
        verdict: `near_tie` or `no`.
        reason: explanation of the verdict, in one line.
        gap: distance between the two values that decided (two scores, or a score and a cut), the larger one
            of both replays; None if a replay did not reproduce its token.
    """

    index: int
    run_token: int | None
    plain_token: int | None
    verdict: Verdict
    reason: str
    gap: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The result of comparing one run with plain decoding.

    Attributes:
        verdict: `yes`, `near_tie` (at least one near tie and no defect) or `no`.
        tokens: number of compared positions.
        differences: the differences found, by position; only the last one can be a `no`.
    """

    verdict: Verdict
    tokens: int
    differences: tuple[Difference, ...] = field(default=())

    @property
    def num_near_ties(self) -> int:
        """The number of differences that are near ties."""
        return sum(d.verdict == NEAR_TIE for d in self.differences)


class LogitRows(NamedTuple):
    """Numbers of rows of logits: compared ones, and those of them of which at least one bit differs."""

    compared: int
    differing: int


def traced(engine: Engine, prompt: Prompt, config: GenerationConfig, *, logits: bool = False) -> tuple[Completion, TracedRun]:
    """Returns a completion, and the tokens and passes that a replay of it needs.

    With `logits`, the trace also has the digests of the logits.

    Raises:
        PromptError: if the prompt is empty or too long.
    """
    trace = Trace(logits={} if logits else None)
    completion = engine.generate(prompt, config, trace=trace)
    return completion, TracedRun(token_ids=tuple(completion.token_ids), trace=trace)


def compare(engine: Engine, config: GenerationConfig, *, plain: Sequence[int], run: TracedRun, tie_tolerance: float) -> Comparison:
    """Returns how a run differs from plain decoding of the same prompt; near ties do not end the comparison.

    Args:
        engine: the engine of both runs. A replay takes one of its slots at a time.
        config: settings of the run. The seed must be set if they sample.
        plain: token ids of plain decoding with the same settings and seed.
        run: the run to compare.
        tie_tolerance: largest distance of two decision scores in a near tie; 0 where the kernels of this
            machine pass the bit test, so that there are no near ties (see `bits_record.tie_tolerance`).
    """
    settings = engine.settings(config)
    prompt_ids = tuple(run.trace.prompt_ids)
    differences: list[Difference] = []
    forced = 0
    while True:
        expected = tuple(plain[forced:])
        index = _first_difference(run.token_ids, expected)
        if index is None:
            return Comparison(verdict=NEAR_TIE if differences else YES, tokens=len(plain), differences=tuple(differences))
        if tie_tolerance == 0:
            found = _difference(expected, run, index, NO, "passes of every query length give the same bits here, but the tokens differ")
        else:
            found = _classify(
                engine.backend, settings, prompt_ids + tuple(plain[:forced]), len(prompt_ids), expected, run, index, tie_tolerance
            )
        differences.append(dataclasses.replace(found, index=forced + index))
        forced += index + 1
        if found.verdict == NO or forced >= len(plain):
            verdict = NO if found.verdict == NO else NEAR_TIE
            return Comparison(verdict=verdict, tokens=min(forced, len(plain)), differences=tuple(differences))
        # Plain decoding has applied the stop strings; a restarted run could miss one that spans the restart.
        onward = dataclasses.replace(config, max_new_tokens=len(plain) - forced, stop=())
        _, run = traced(engine, [*prompt_ids, *plain[:forced]], onward)


def compare_logits(plain: TracedRun, run: TracedRun) -> LogitRows:
    """Returns how the logits of two runs with the same tokens compare; both were traced with `logits`.

    Not compared: rows after the end of the text, and an alternative's row that decided the last token.
    """
    first = len(plain.trace.prompt_ids)
    ours, theirs = run.trace.logits or {}, plain.trace.logits or {}
    positions = [p for p in range(first, first + len(plain.token_ids)) if p in ours and p in theirs]
    return LogitRows(compared=len(positions), differing=sum(ours[p] != theirs[p] for p in positions))


def _first_difference(run: Sequence[int], plain: Sequence[int]) -> int | None:
    for index, (a, b) in enumerate(zip(run, plain, strict=False)):
        if a != b:
            return index
    return None if len(run) == len(plain) else min(len(run), len(plain))


def _classify(
    backend: Backend,
    settings: DecodeSettings,
    prefix: tuple[int, ...],
    num_prompt: int,
    expected: Sequence[int],
    run: TracedRun,
    index: int,
    tolerance: float,
) -> Difference:
    """Returns the verdict on the difference at `index` of a run that began after `prefix`.

    The first `num_prompt` tokens of `prefix` are the prompt.
    """
    found = functools.partial(_difference, expected, run, index)
    run_token, plain_token = _token(run.token_ids, index), _token(expected, index)
    if run_token is None or plain_token is None:
        return found(NO, f"{'the run' if run_token is None else 'plain decoding'} ended first, after the same tokens")
    sequence = prefix + run.token_ids[:index]
    as_run = _replay_rounds(backend, sequence, run.trace, index)
    if as_run is None:
        return found(NO, "the run's trace does not hold the pass that gave the token")
    if decide(as_run, settings) != run_token:
        return found(NO, f"replaying the run's own passes gives token {decide(as_run, settings)}")
    as_plain = _replay_singly(backend, sequence, num_prompt)
    if decide(as_plain, settings) != plain_token:
        return found(NO, f"replaying one position at a time gives token {decide(as_plain, settings)}")
    reason, gap = _deciding_gap(
        [standing(row, settings, run_token) for row in (as_run, as_plain)],
        [standing(row, settings, plain_token) for row in (as_run, as_plain)],
        tolerance,
    )
    return found(NEAR_TIE if gap <= tolerance else NO, f"{reason} by {gap:.1e}", gap)


def _difference(expected: Sequence[int], run: TracedRun, index: int, verdict: Verdict, reason: str, gap: float | None = None) -> Difference:
    return Difference(
        index=index,
        run_token=_token(run.token_ids, index),
        plain_token=_token(expected, index),
        verdict=verdict,
        reason=reason,
        gap=gap,
    )


def _token(tokens: Sequence[int], index: int) -> int | None:
    return tokens[index] if index < len(tokens) else None


def _deciding_gap(run: Sequence[Standing], plain: Sequence[Standing], tolerance: float) -> tuple[str, float]:
    """Returns which two values decided between the tokens, and their larger distance in the two replays.

    Args:
        run: the run's token in the replay with the run's own passes, and in the one with one position per
            pass.
        plain: the plain token in the same two replays.
        tolerance: largest distance in a near tie.
    """
    gaps = [r.score - p.score for r, p in zip(run, plain, strict=True)]
    score_gap = max(abs(g) for g in gaps)
    if score_gap > tolerance and all(g < 0 for g in gaps) and not plain[0].kept:
        # The plain token scores higher in both replays, so only a filter can have dropped it in the run.
        return "the plain token and the filter's cut differ", max(p.to_cut for p in plain)
    if score_gap > tolerance and all(g > 0 for g in gaps) and not run[1].kept:
        return "the run's token and the filter's cut differ", max(r.to_cut for r in run)
    return "decision scores differ", score_gap


def _replay_rounds(backend: Backend, sequence: Sequence[int], trace: Trace, index: int) -> Row | None:
    """Returns the row that decided token `index`, from the run's own passes; None if the trace lacks it.

    Args:
        backend: the engines that made the run.
        sequence: the run's prompt and its tokens before `index`.
        trace: the passes of the run.
        index: 0-based position in the run's completion.
    """
    position = len(trace.prompt_ids) + index
    rounds = [r for r in trace.rounds if r.first_decided <= position]
    if index > 0 and not (rounds and rounds[-1].has_path(sequence[rounds[-1].start + 1 : position])):
        return None
    slot = backend.acquire(None)
    try:
        output = slot.prefill(trace.prompt_ids)
        if index == 0:
            return Row(logits=output.logits[0].copy(), position=position)
        for one in rounds:
            output = slot.verify(one.tree.trunk, one.start, one.tree.branches)
        return Row(logits=output.logits[rounds[-1].row_for(position)].copy(), position=position)
    finally:
        backend.release(slot)


def _replay_singly(backend: Backend, sequence: Sequence[int], num_prompt: int) -> Row:
    """Returns the row after the last token, computed as in plain decoding: one position per pass."""
    slot = backend.acquire(None)
    try:
        output = slot.prefill(sequence[:num_prompt])
        for position in range(num_prompt, len(sequence)):
            output = slot.verify([sequence[position]], position)
        return Row(logits=output.logits[0].copy(), position=len(sequence))
    finally:
        backend.release(slot)
