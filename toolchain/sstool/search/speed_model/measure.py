"""Measures what each part of decoding takes on this machine, once, so that scores are reproducible.

Draft steps and verify passes alternate as in decoding, because each affects the processor's caches and the
thread pools that the other finds. The times include host work (sampling, bookkeeping).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime.acceptance import Acceptance, make_acceptance
from ssruntime.artifact import VERIFY_GRAPH
from ssruntime.backends.base import Backend, DraftEngine, Slot, processor_of
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.proposal import Proposal
from ssruntime.proposers.skip import SkipProposer
from ssruntime.stopping import MAX_DRAFT_LIMIT, FixedRule, FixedStopping
from sstool.graph.sublayers import Sublayer, sublayer_of
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import Bits, Candidate, DraftSpace, sharing
from sstool.search.log.records import FORMAT, LatencyTable
from sstool.search.settings import SAMPLED, SearchSettings
from sstool.search.speed_model.fit import CostSample, StepSample, fit
from sstool.search.speed_model.probes import probe_sets, probes_within
from sstool.search.texts.make import CalibrationText

CONTEXTS: Final = (96, 1024)
"""Context lengths to measure at: a usual one for prompts, and a much larger one."""
_QUERY_LENGTHS: Final = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
"""Query lengths of the measured verify passes; those between are interpolated."""
_TURNS: Final = (4, 20)
"""Least and most turns at one context length. Each turn measures every query length and every probe."""
_SECONDS: Final = 10.0
"""Seconds at one context length after which no turn begins, once the least number of turns is done."""
_BUDGET_SHARE: Final = 1 / 60
"""The same limit as a share of the budget, for budgets below the usual ten minutes."""
_QUICK_STEPS: Final = 6
"""Steps of a quick, rough measurement."""
_PLAIN_STEPS: Final = 4
"""Autoregressive steps in a row, because autoregressive decoding (mode `plain`) has no drafts between."""


class _LastToken(NamedTuple):
    """What a proposer reads of a sequence whose last token has no KV yet."""

    ids: Sequence[int]
    start: int


@dataclass(frozen=True, slots=True)
class _Round:
    """Seconds of one round; `later` is the mean draft step after the first, None if there is only one."""

    first: float
    later: float | None
    verify: float


def measure_latency(builder: DraftBuilder, space: DraftSpace, texts: Sequence[CalibrationText], settings: SearchSettings) -> LatencyTable:
    """Returns the latency table of the artifact on this machine, measured now.

    Args:
        builder: builder of the probe drafts.
        space: the search space; if drafts may have own weights, their costs are measured too.
        texts: calibration texts to decode while measuring.
        settings: settings of the search, which fix the sampling.
    """
    engine, num_layers = builder.engine, builder.num_layers
    shared, int4 = probe_sets(num_layers), probes_within(space)
    probes = [*map(sharing, shared), *map(_over_int4, int4)]
    sessions = [builder.open(probe.skip_set(), probe.low_bit_set()) for probe in probes]
    weights = sublayer_bytes(builder.verify, num_layers)
    longest = FixedRule(max_draft=MAX_DRAFT_LIMIT)
    complete = dataclasses.replace(engine.settings(settings.decoding(SAMPLED, settings.seed)), stopping=longest)
    patience = min(_SECONDS, settings.budget_seconds * _BUDGET_SHARE)
    rows, errors = [], []
    for context in _contexts(engine.backend.max_context):
        slot, token = _prefilled(builder.backend, texts, context)
        start = _RoundStart(slot, make_acceptance(complete, context), complete.max_alternatives, token, context)
        row, error = fit(context, _measure(start, sessions, (shared, int4), patience), weights)
        rows.append(row)
        errors.append(error)
    return LatencyTable(
        format=FORMAT,
        weights_sha256=engine.artifact.manifest.weights_digest,
        verify_sha256=engine.artifact.manifest.files[VERIFY_GRAPH].sha256,
        cpu=processor_of(engine.backend),
        threads=engine.backend.threads,
        onnxruntime=ort.__version__,
        rows=tuple(rows),
        fit_error=max(errors),
    )


def time_step(builder: DraftBuilder, ids: Sequence[int]) -> float:
    """Returns a rough measurement of an autoregressive step, in seconds.

    Args:
        builder: draft builder of the artifact.
        ids: token ids to prefill before the step, at least one.
    """
    begin = ids[:_QUICK_STEPS]
    slot = builder.filled_slot(begin)
    times = []
    for _ in range(_QUICK_STEPS):
        begun = time.perf_counter()
        slot.verify((ids[0],), len(begin))
        times.append(time.perf_counter() - begun)
    return min(times)


def sublayer_bytes(verify: ir.Model, num_layers: int) -> NDArray[np.float64]:
    """Returns the bytes of each sublayer's own weights, float64[2 * num_layers] in the order of `space.Bits`.

    A tensor that several sublayers read counts for none.
    """
    readers: dict[str, set[Sublayer]] = {}
    for node in verify.graph:
        found = sublayer_of(node)
        if found is None:
            continue
        for value in node.inputs:
            if value is not None and value.const_value is not None:
                readers.setdefault(value.name or "", set()).add(found)
    totals = np.zeros(2 * num_layers)
    for name, sublayers in readers.items():
        tensor = verify.graph.initializers[name].const_value if name in verify.graph.initializers else None
        if len(sublayers) == 1 and tensor is not None:
            totals[_index(next(iter(sublayers)), num_layers)] += tensor.nbytes
    return totals


def _over_int4(skipped: Bits) -> Candidate:
    """Returns the candidate in which everything that is kept has int4 weights."""
    return Candidate(skipped, tuple(1 - bit for bit in skipped), int4_head=True)


def _contexts(max_context: int) -> list[int]:
    """Returns `CONTEXTS`, each reduced if rounds would not fit into the model's context after it."""
    room = max_context - 2 * MAX_QUERY_LENGTH
    return sorted({max(1, min(context, room)) for context in CONTEXTS})


@dataclass(frozen=True, slots=True)
class _RoundStart:
    """The state at the start of each measured round: `context` positions of KV, and the next token."""

    slot: Slot
    acceptance: Acceptance
    max_alternatives: int
    token: int
    context: int


def _prefilled(backend: Backend, texts: Sequence[CalibrationText], context: int) -> tuple[Slot, int]:
    """Returns a slot with `context` positions of text and room for a round, and the next token."""
    slot = backend.new_slot(context + 2 * MAX_QUERY_LENGTH)
    tokens = [token for text in texts for token in (*text.prompt, *text.tokens)]
    tokens *= -(-(context + 1) // len(tokens))
    slot.prefill(tokens[:context])
    return slot, tokens[context]


def _measure(start: _RoundStart, sessions: Sequence[DraftEngine], sets: tuple[list[Bits], list[Bits]], patience: float) -> CostSample:
    """Returns the times of as many turns as fit into `patience` seconds, within the limits of `_TURNS`.

    The sessions are those of the first sets, over shared weights, and then those of the others, over int4.
    """
    room = start.slot.max_context - start.context
    lengths = [n for n in _QUERY_LENGTHS if n <= room]
    plain: list[float] = []
    verify: dict[int, list[float]] = {n: [] for n in lengths}
    first: list[list[float]] = [[] for _ in sessions]
    later: list[list[float]] = [[] for _ in sessions]
    least, most = _TURNS
    _turn(start, sessions, lengths, 0)  # warm-up: opens and binds everything
    begun = time.perf_counter()
    for turn in range(1, most + 1):
        if turn > least and time.perf_counter() - begun > patience:
            break
        steps, rounds = _turn(start, sessions, lengths, turn)
        plain += steps
        for length, probe, measured in rounds:
            verify[length].append(measured.verify)
            first[probe].append(measured.first)
            later[probe].extend([] if measured.later is None else [measured.later])
    shared, int4 = sets
    count = len(shared)
    own = StepSample(int4, first[count:], later[count:]) if int4 else None
    return CostSample(plain, verify, StepSample(shared, first[:count], later[:count]), own)


def _turn(
    start: _RoundStart, sessions: Sequence[DraftEngine], lengths: Sequence[int], turn: int
) -> tuple[list[float], list[tuple[int, int, _Round]]]:
    """Returns the times of autoregressive steps, and rounds with the query length and the probe of each.

    A turn covers all query lengths and all probes; the next turn pairs them differently.
    """
    plain = []
    for _ in range(_PLAIN_STEPS):
        begun = time.perf_counter()
        start.acceptance.sample(start.slot.verify((start.token,), start.context), start.context + 1)
        plain.append(time.perf_counter() - begun)
    rounds = []
    for number in range(max(len(lengths), len(sessions))):
        length, probe = lengths[number % len(lengths)], (number + turn) % len(sessions)
        rounds.append((length, probe, _round(start, sessions[probe], length)))
    return plain, rounds


def _round(start: _RoundStart, session: DraftEngine, length: int) -> _Round:
    """Returns the times of one round, run as decoding runs it."""
    slot, token, context = start.slot, start.token, start.context
    slot.use_draft(session)
    proposer = SkipProposer(
        start.acceptance,
        FixedStopping(),
        max_draft=MAX_DRAFT_LIMIT,
        max_alternatives=start.max_alternatives,
        alternatives_end=slot.alternatives_end,
    )
    ids = [0] * context + [token]  # of the tokens with KV, a proposer reads no ids
    _propose(slot, proposer, ids, 1)  # warm-up: binds the draft's buffers
    slot.verify((token,), context)
    begun = time.perf_counter()
    first_step = _propose(slot, proposer, ids, 1)
    first = time.perf_counter()
    ids.append(first_step.tokens[0])
    # The draft looks for alternatives (side branches of the token tree, one token long), as in decoding, but
    # only the draft sequence is verified. At the same query length both take the same time, apart from a
    # little Python work for the tree mask.
    later_steps = _propose(slot, proposer, ids, length - 2)
    sequence = Proposal([*first_step.tokens, *later_steps.tokens])
    drafted = time.perf_counter()
    start.acceptance.accept(slot.verify((token, *sequence.tokens), context), sequence, context + 1)
    verify = time.perf_counter() - drafted
    return _Round(first - begun, (drafted - first) / (length - 2) if length > 2 else None, verify)


def _propose(slot: Slot, proposer: SkipProposer, ids: list[int], limit: int) -> Proposal:
    """Returns a proposal after running its passes; only the last of `ids` has no KV yet."""
    passes = proposer.propose(_LastToken(ids, len(ids) - 1), limit)
    try:
        wanted = next(passes)
        while True:
            wanted = passes.send(slot.run(wanted))
    except StopIteration as done:
        proposal: Proposal = done.value
        return proposal


def _index(sublayer: Sublayer, num_layers: int) -> int:
    return sublayer.layer + (0 if sublayer.kind == "attention" else num_layers)
