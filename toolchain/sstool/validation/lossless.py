"""Whether speculative output is plain output: every first difference is replayed, and is a near tie or a defect.

Two widths of one engine differ by float rounding, so a true tie may flip. A difference is a `near_tie` only if all hold:
replaying the committed text with the run's exact widths, rejected proposals included, gives the run's token; replaying it one
position at a time gives plain's; and in both replays the two tokens' decision scores (for a filtered token, its distance to the
cut) are within `NEAR_TIE_TOLERANCE`. Plain's token is then forced and the comparison goes on. Anything else is `no`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from ssruntime.backends.base import Backend
from ssruntime.config import DecodeSettings, GenerationConfig
from ssruntime.engine import Engine
from ssruntime.results import Completion, Round, Trace
from ssruntime.text.codec import Prompt
from sstool.validation.near_tie import NEAR_TIE_TOLERANCE, Row, Standing, decide, standing

Verdict = Literal["yes", "near_tie", "no"]

YES: Final[Verdict] = "yes"
NEAR_TIE: Final[Verdict] = "near_tie"
NO: Final[Verdict] = "no"


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedRun:
    """A completion's tokens and the passes that gave them."""

    token_ids: tuple[int, ...]
    trace: Trace


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A position where a run and plain decoding gave different tokens.

    Attributes:
        index: place in the completion, 0 for its first token.
        run_token: the run's token; None where the run had already ended.
        plain_token: plain decoding's; None where that had already ended.
        verdict: `near_tie` or `no`.
        reason: why, in one line.
        gap: largest distance, over both replays, of the scores or cuts that decided; None if the replays did not give the tokens.
    """

    index: int
    run_token: int | None
    plain_token: int | None
    verdict: Verdict
    reason: str
    gap: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The outcome of one run against plain decoding.

    Attributes:
        verdict: `yes`, `near_tie` (at least one, and no defect) or `no`.
        tokens: positions compared.
        differences: what differed, in order; only the last one can be a `no`.
    """

    verdict: Verdict
    tokens: int
    differences: tuple[Difference, ...] = field(default=())

    @property
    def num_near_ties(self) -> int:
        """How many of the differences are near ties."""
        return sum(d.verdict == NEAR_TIE for d in self.differences)


def traced(engine: Engine, prompt: Prompt, config: GenerationConfig) -> tuple[Completion, TracedRun]:
    """Generates, and keeps what a replay needs.

    Raises:
        PromptError: if the prompt is empty or too long.
    """
    trace = Trace()
    completion = engine.generate(prompt, config, trace=trace)
    return completion, TracedRun(token_ids=tuple(completion.token_ids), trace=trace)


def compare(engine: Engine, config: GenerationConfig, *, plain: Sequence[int], run: TracedRun) -> Comparison:
    """Compares a run with plain decoding's tokens of the same prompt, and goes on past near ties.

    Args:
        engine: the engine of both; a replay takes one of its slots at a time.
        config: what the run was made with; its seed must be given where it samples.
        plain: plain decoding's token ids with the same settings and seed.
        run: what is compared.
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
        found = _judge(engine.backend, settings, prompt_ids + tuple(plain[:forced]), len(prompt_ids), expected, run, index)
        differences.append(dataclasses.replace(found, index=forced + index))
        forced += index + 1
        if found.verdict == NO or forced >= len(plain):
            verdict = NO if found.verdict == NO else NEAR_TIE
            return Comparison(verdict=verdict, tokens=min(forced, len(plain)), differences=tuple(differences))
        # Stop strings are plain's business: it has ended where it should, and a text cut in two might hide one.
        onward = dataclasses.replace(config, max_new_tokens=len(plain) - forced, stop=())
        _, run = traced(engine, [*prompt_ids, *plain[:forced]], onward)


def _first_difference(run: Sequence[int], plain: Sequence[int]) -> int | None:
    for index, (a, b) in enumerate(zip(run, plain, strict=False)):
        if a != b:
            return index
    return None if len(run) == len(plain) else min(len(run), len(plain))


def _judge(
    backend: Backend,
    settings: DecodeSettings,
    prefix: tuple[int, ...],
    num_prompt: int,
    expected: Sequence[int],
    run: TracedRun,
    index: int,
) -> Difference:
    """Classifies the difference at `index` of a run that began after `prefix`, of which `num_prompt` tokens are the prompt's."""
    run_token = run.token_ids[index] if index < len(run.token_ids) else None
    plain_token = expected[index] if index < len(expected) else None

    def found(verdict: Verdict, reason: str, gap: float | None = None) -> Difference:
        return Difference(index=index, run_token=run_token, plain_token=plain_token, verdict=verdict, reason=reason, gap=gap)

    if run_token is None or plain_token is None:
        return found(NO, f"{'the run' if run_token is None else 'plain decoding'} ended first, after the same tokens")
    sequence = prefix + run.token_ids[:index]
    wide = _replay_rounds(backend, sequence, run.trace, index)
    if wide is None:
        return found(NO, "the run's trace does not hold the pass that gave the token")
    if decide(wide, settings) != run_token:
        return found(NO, f"replaying the run's own passes gives token {decide(wide, settings)}")
    narrow = _replay_singly(backend, sequence, num_prompt)
    if decide(narrow, settings) != plain_token:
        return found(NO, f"replaying one position at a time gives token {decide(narrow, settings)}")
    reason, gap = _nearness(
        [standing(row, settings, run_token) for row in (wide, narrow)], [standing(row, settings, plain_token) for row in (wide, narrow)]
    )
    return found(NEAR_TIE if gap <= NEAR_TIE_TOLERANCE else NO, f"{reason} by {gap:.1e}", gap)


def _nearness(run: Sequence[Standing], plain: Sequence[Standing]) -> tuple[str, float]:
    """Returns what lets rounding flip the choice between two tokens, and how far it is from doing so, the larger of both replays.

    Args:
        run: the run's token, with the run's widths and one position at a time.
        plain: plain's token, likewise.
    """
    gaps = [r.score - p.score for r, p in zip(run, plain, strict=True)]
    score_gap = max(abs(g) for g in gaps)
    if score_gap > NEAR_TIE_TOLERANCE and all(g < 0 for g in gaps) and not plain[0].kept:
        # Plain's token is the better one at both widths, so the run can only have taken another because a filter dropped it.
        return "plain's token and the cut differ", max(p.to_cut for p in plain)
    if score_gap > NEAR_TIE_TOLERANCE and all(g > 0 for g in gaps) and not run[1].kept:
        return "the run's token and the cut differ", max(r.to_cut for r in run)
    return "decision scores differ", score_gap


def _replay_rounds(backend: Backend, sequence: Sequence[int], trace: Trace, index: int) -> Row | None:
    """Runs a traced run's passes again up to the one that decided token `index`; None where no recorded pass can have.

    Args:
        backend: the engines that made the run.
        sequence: the run's prompt and its tokens before `index`.
        trace: the run's passes.
        index: place in the run's completion.
    """
    position = len(trace.prompt_ids) + index
    rounds = [r for r in trace.rounds if r.start < position]
    if index > 0 and not _decides(rounds, sequence, position):
        return None
    slot = backend.acquire(None)
    try:
        output = slot.prefill(trace.prompt_ids)
        if index == 0:
            return Row(logits=output.logits[0].copy(), position=position)
        for one in rounds:
            output = slot.verify([sequence[one.start], *one.proposals], one.start, one.alternatives)
            if one is not rounds[-1] and one.alternative is not None:
                slot.copy_kv(one.start + 1 + len(one.proposals) + one.alternative, one.start + 1 + one.alternatives[one.alternative].depth)
        return Row(logits=output.logits[_deciding_row(rounds[-1], position)].copy(), position=position)
    finally:
        backend.release(slot)


def _decides(rounds: Sequence[Round], sequence: Sequence[int], position: int) -> bool:
    """Whether the last of `rounds` gives the token at `position`: the tokens between were its first ones that stood."""
    if not rounds:
        return False
    last = rounds[-1]
    between = tuple(sequence[last.start + 1 : position])
    stood = last.proposals
    if last.alternative is not None:
        depth, token = last.alternatives[last.alternative]
        stood = (*last.proposals[:depth], token)
    return stood[: len(between)] == between


def _deciding_row(last: Round, position: int) -> int:
    """Returns which row of a round's output decides the token at `position`."""
    offset = position - 1 - last.start
    if last.alternative is not None and offset > last.alternatives[last.alternative].depth:
        return 1 + len(last.proposals) + last.alternative
    return offset


def _replay_singly(backend: Backend, sequence: Sequence[int], num_prompt: int) -> Row:
    """Runs a prompt and then its continuation one position a pass, as plain decoding does; gives the row after the last token."""
    slot = backend.acquire(None)
    try:
        output = slot.prefill(sequence[:num_prompt])
        for position in range(num_prompt, len(sequence)):
            output = slot.verify([sequence[position]], position)
        return Row(logits=output.logits[0].copy(), position=len(sequence))
    finally:
        backend.release(slot)
