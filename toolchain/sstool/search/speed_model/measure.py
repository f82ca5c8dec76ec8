"""What each part of decoding takes on this machine, measured once, so that a skip set always scores the same.

Draft and verify alternate, as in decoding: each leaves the caches and the thread pools as the other finds them. Host work (sampling,
bookkeeping) is inside the times.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime.acceptance import Acceptance, make_acceptance
from ssruntime.artifact import VERIFY_GRAPH, WEIGHTS
from ssruntime.backends.ort.backend import OrtBackend
from ssruntime.backends.ort.slot import OrtSlot
from ssruntime.config import DEFAULT_MAX_ALTERNATIVES
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.machine import cpu_model
from ssruntime.proposal import Proposal
from ssruntime.proposers.skip import SkipProposer
from ssruntime.stopping import FixedStopping
from sstool.graph.sublayers import Sublayer, sublayer_of
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import skip_of
from sstool.search.log.records import FORMAT, LatencyTable
from sstool.search.settings import SAMPLED, SearchSettings
from sstool.search.speed_model.fit import CostSample, fit
from sstool.search.speed_model.probes import probe_sets
from sstool.search.texts.make import CalibrationText

CONTEXTS: Final = (96, 1024)
"""Positions before the measured steps, as far as the context goes: within a prompt's usual length, and far beyond it."""
_WIDTHS: Final = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
"""Widths measured; those between are interpolated."""
_TURNS: Final = (4, 20)
"""Least and most rounds of each width and of each probe."""
_SECONDS: Final = 10.0
"""After so long at one context no further turn begins, beyond the least; earlier where the budget is less than the usual ten minutes."""
_BUDGET_SHARE: Final = 1 / 60
_QUICK_STEPS: Final = 6
"""Steps that tell roughly what a step takes."""
_PLAIN_STEPS: Final = 4
"""Plain steps in a row, as plain decoding has no draft between them."""


@dataclass(frozen=True, slots=True)
class _Round:
    """Seconds of one round; `later` is a step's mean, None where the draft has one step."""

    first: float
    later: float | None
    verify: float


def measure_latency(builder: DraftBuilder, texts: Sequence[CalibrationText], settings: SearchSettings) -> LatencyTable:
    """Measures the table.

    Args:
        builder: builds the probe drafts.
        texts: what to decode while measuring.
        settings: how to sample.
    """
    engine, num_layers = builder.engine, builder.num_layers
    probes = probe_sets(num_layers)
    sessions = [builder.open(skip_of(bits)) for bits in probes]
    weights = sublayer_bytes(builder.verify, num_layers)
    complete = dataclasses.replace(engine.settings(settings.decoding(SAMPLED, settings.seed)), max_draft=MAX_QUERY_LENGTH - 1)
    patience = min(_SECONDS, settings.budget_seconds * _BUDGET_SHARE)
    rows, errors = [], []
    for context in _contexts(engine.backend.max_context):
        slot, token = _prefilled(builder.backend, texts, context)
        sample = _measure(_Stand(slot, make_acceptance(complete), token, context), sessions, patience)
        row, error = fit(context, sample, probes, weights)
        rows.append(row)
        errors.append(error)
    return LatencyTable(
        format=FORMAT,
        weights_sha256=engine.artifact.manifest.files[WEIGHTS].sha256,
        verify_sha256=engine.artifact.manifest.files[VERIFY_GRAPH].sha256,
        cpu=cpu_model(),
        threads=engine.backend.threads,
        onnxruntime=ort.__version__,
        rows=tuple(rows),
        fit_error=max(errors),
    )


def time_step(builder: DraftBuilder, ids: Sequence[int]) -> float:
    """Returns the seconds of a plain step, roughly and at once.

    Args:
        builder: of the artifact.
        ids: tokens to stand behind, at least one.
    """
    begin = ids[:_QUICK_STEPS]
    slot = builder.backend.new_slot(len(begin) + 1)
    slot.prefill(begin)
    times = []
    for _ in range(_QUICK_STEPS):
        begun = time.perf_counter()
        slot.verify((ids[0],), len(begin))
        times.append(time.perf_counter() - begun)
    return min(times)


def sublayer_bytes(verify: ir.Model, num_layers: int) -> NDArray[np.float64]:
    """Returns the bytes of each sublayer's own weights, float64[2 * num_layers] in the order of `space.Bits`.

    A tensor that several sublayers read, such as a table of angles, is none of theirs: a step reads a row of it.
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


def _contexts(max_context: int) -> list[int]:
    room = max_context - 2 * MAX_QUERY_LENGTH
    return sorted({max(1, min(context, room)) for context in CONTEXTS})


@dataclass(frozen=True, slots=True)
class _Stand:
    """Where rounds are measured: behind `context` positions in the cache, the token that comes next in hand."""

    slot: OrtSlot
    acceptance: Acceptance
    token: int
    context: int


def _prefilled(backend: OrtBackend, texts: Sequence[CalibrationText], context: int) -> tuple[OrtSlot, int]:
    """Returns a slot that holds `context` positions of calibration text, with room for a round behind them, and the next token."""
    slot = backend.new_slot(context + 2 * MAX_QUERY_LENGTH)
    tokens = [token for text in texts for token in (*text.prompt, *text.tokens)]
    tokens *= -(-(context + 1) // len(tokens))
    slot.prefill(tokens[:context])
    return slot, tokens[context]


def _measure(stand: _Stand, sessions: Sequence[ort.InferenceSession], patience: float) -> CostSample:
    room = stand.slot.max_context - stand.context
    widths = [w for w in _WIDTHS if w <= room]
    sample = CostSample([], {w: [] for w in widths}, [[] for _ in sessions], [[] for _ in sessions])
    least, most = _TURNS
    _turn(stand, sessions, widths, 0)  # opens and binds everything, and does not count
    begun = time.perf_counter()
    for turn in range(1, most + 1):
        if turn > least and time.perf_counter() - begun > patience:
            break
        plain, rounds = _turn(stand, sessions, widths, turn)
        sample.plain.extend(plain)
        for width, probe, measured in rounds:
            sample.verify[width].append(measured.verify)
            sample.first[probe].append(measured.first)
            sample.later[probe].extend([] if measured.later is None else [measured.later])
    return sample


def _turn(
    stand: _Stand, sessions: Sequence[ort.InferenceSession], widths: Sequence[int], turn: int
) -> tuple[list[float], list[tuple[int, int, _Round]]]:
    """Runs plain steps and rounds, each with its width and probe: all widths, and all probes, which have other widths the next turn."""
    plain = []
    for _ in range(_PLAIN_STEPS):
        begun = time.perf_counter()
        stand.acceptance.sample(stand.slot.verify((stand.token,), stand.context), stand.context + 1)
        plain.append(time.perf_counter() - begun)
    rounds = []
    for number in range(max(len(widths), len(sessions))):
        width, probe = widths[number % len(widths)], (number + turn) % len(sessions)
        rounds.append((width, probe, _round(stand, sessions[probe], width)))
    return plain, rounds


def _round(stand: _Stand, session: ort.InferenceSession, width: int) -> _Round:
    """Runs one round as decoding does."""
    slot, token, context = stand.slot, stand.token, stand.context
    slot.use_draft(session)
    proposer = SkipProposer(slot, stand.acceptance, FixedStopping(), max_alternatives=DEFAULT_MAX_ALTERNATIVES)
    proposer.propose(token, context, 1)  # binds the draft's buffers
    slot.verify((token,), context)
    begun = time.perf_counter()
    tokens = proposer.propose(token, context, 1).tokens
    first = time.perf_counter()
    # Alternatives are found, as in decoding, but what is verified here is a chain. A pass takes as long for the one as for the other; the
    # 20 to 30 us of Python for a mask, and for moving what stood, are left out.
    chain = Proposal([*tokens, *proposer.propose(tokens[0], context + 1, width - 2).tokens])
    drafted = time.perf_counter()
    stand.acceptance.accept(slot.verify((token, *chain.tokens), context), chain, context + 1)
    verify = time.perf_counter() - drafted
    return _Round(first - begun, (drafted - first) / (width - 2) if width > 2 else None, verify)


def _index(sublayer: Sublayer, num_layers: int) -> int:
    return sublayer.layer + (0 if sublayer.kind == "attention" else num_layers)


def latency_json(table: LatencyTable) -> bytes:
    """Returns the content of `latency.json`."""
    return (json.dumps(dataclasses.asdict(table), indent=1) + "\n").encode()
