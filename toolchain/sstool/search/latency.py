"""What each part of decoding takes on this machine, measured once, so that a skip set always scores the same.

Draft and verify alternate, as in decoding: each leaves the caches and the thread pools as the other finds them. Host work (sampling,
bookkeeping) is inside the times. The cost of a draft is a base and a share for each sublayer it keeps, fitted to probe drafts.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime.acceptance import Acceptance, make_acceptance
from ssruntime.artifact import WEIGHTS, SkipSet
from ssruntime.backends.ort import OrtBackend, OrtSlot
from ssruntime.exits import FixedExit
from ssruntime.graph_io import MAX_VERIFY_WIDTH
from ssruntime.machine import cpu_model
from ssruntime.proposers.skip import SkipProposer
from sstool.graph.sublayers import Sublayer, sublayer_of
from sstool.search.candidates import Candidates
from sstool.search.records import FORMAT, LatencyRow, LatencyTable
from sstool.search.settings import SearchSettings
from sstool.search.space import Bits, bits_of, skip_of
from sstool.search.texts import SAMPLED, CalibrationText, decode_settings

CONTEXTS: Final = (96, 1024)
"""Positions before the measured steps, as far as the context goes: within a prompt's usual length, and far beyond it."""
_WIDTHS: Final = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
"""Widths measured; those between are interpolated."""
_ROUNDS: Final = 5
"""Times that every round is measured; the median counts."""
_QUICK_STEPS: Final = 6
"""Steps that tell roughly what a step takes."""
_PLAIN_STEPS: Final = 4
"""Plain steps in a row, as plain decoding has no draft between them."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Seconds by what was measured: plain steps, verify passes by width, draft steps by probe."""

    plain: list[float]
    verify: dict[int, list[float]]
    draft: list[list[float]]


def measure_latency(candidates: Candidates, texts: Sequence[CalibrationText], settings: SearchSettings) -> LatencyTable:
    """Measures the table.

    Args:
        candidates: builds the probe drafts.
        texts: what to decode while measuring.
        settings: how to sample.
    """
    engine, num_layers = candidates.engine, candidates.num_layers
    probes = probe_sets(num_layers)
    sessions = [candidates.open(skip_of(bits)) for bits in probes]
    weights = sublayer_bytes(candidates.verify, num_layers)
    complete = dataclasses.replace(decode_settings(engine, settings, SAMPLED, settings.seed), max_draft=MAX_VERIFY_WIDTH - 1)
    rows, errors = [], []
    for context in _contexts(engine.backend.max_context):
        slot, token = _prefilled(candidates.backend, texts, context)
        sample = _measure(_Stand(slot, make_acceptance(complete), token, context), sessions)
        row, error = _fit(context, sample, probes, weights)
        rows.append(row)
        errors.append(error)
    return LatencyTable(
        format=FORMAT,
        weights_sha256=engine.artifact.manifest.files[WEIGHTS].sha256,
        cpu=cpu_model(),
        threads=engine.backend.threads,
        onnxruntime=ort.__version__,
        rows=tuple(rows),
        fit_error=max(errors),
    )


def time_step(candidates: Candidates, ids: Sequence[int]) -> float:
    """Returns the seconds of a plain step, roughly and at once.

    Args:
        candidates: of the artifact.
        ids: tokens to stand behind, at least one.
    """
    begin = ids[:_QUICK_STEPS]
    slot = candidates.backend.new_slot(len(begin) + 1)
    slot.prefill(begin)
    times = []
    for _ in range(_QUICK_STEPS):
        begun = time.perf_counter()
        slot.verify((ids[0],), len(begin))
        times.append(time.perf_counter() - begun)
    return min(times)


def probe_sets(num_layers: int) -> list[Bits]:
    """Returns the skip sets whose drafts the costs are fitted to: of many depths, with either kind, both or little left."""
    layers = range(num_layers)

    def keep(attention: Sequence[int], mlp: Sequence[int]) -> Bits:
        skip = SkipSet(attention=tuple(set(layers) - set(attention)), mlp=tuple(set(layers) - set(mlp)))
        return bits_of(skip, num_layers)

    last = num_layers - 1
    probes = [
        keep([0], [last]),
        keep(layers, [last]),
        keep([0], layers),
        keep(layers[::2], layers[::4]),
        keep(layers[1::4], layers[::2]),
        keep(layers[::3], layers[::3]),
        keep(layers, layers[::2]),
    ]
    return [p for p in dict.fromkeys(probes) if 0 < sum(p) < len(p)]


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


class CostModel:
    """Seconds of a draft step and of a verify pass, from a table, by context length."""

    def __init__(self, table: LatencyTable) -> None:
        self._contexts = np.array([row.context for row in table.rows], dtype=np.float64)
        self._verify = np.array([row.verify for row in table.rows])
        self._base = np.array([row.draft_base for row in table.rows])
        self._parts = np.array([[*row.attention, *row.mlp] for row in table.rows])

    def verify(self, context: float) -> list[float]:
        """Returns the seconds of verify passes; at index k, one that checks k proposals."""
        return [float(v) for v in self._at(self._verify, context)]

    def draft(self, bits: Bits, context: float) -> float:
        """Returns the seconds of one step of a draft."""
        kept = 1 - np.array(bits)
        return float(self._at(self._base[:, None], context)[0] + self._at(self._parts, context) @ kept)

    def shares(self, context: float) -> NDArray[np.float64]:
        """Returns what each sublayer adds to a draft step, float64[2 * num_layers] seconds."""
        return self._at(self._parts, context)

    def _at(self, values: NDArray[np.float64], context: float) -> NDArray[np.float64]:
        if len(self._contexts) == 1:
            only: NDArray[np.float64] = values[0]
            return only
        where = np.interp(context, self._contexts, np.arange(len(self._contexts)))
        low = min(int(where), len(self._contexts) - 2)
        between: NDArray[np.float64] = values[low] + (where - low) * (values[low + 1] - values[low])
        return between


def _contexts(max_context: int) -> list[int]:
    room = max_context - 2 * MAX_VERIFY_WIDTH
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
    slot = backend.new_slot(context + 2 * MAX_VERIFY_WIDTH)
    tokens = [token for text in texts for token in (*text.prompt, *text.tokens)]
    tokens *= -(-(context + 1) // len(tokens))
    slot.prefill(tokens[:context])
    return slot, tokens[context]


def _measure(stand: _Stand, sessions: Sequence[ort.InferenceSession]) -> _Sample:
    room = stand.slot.max_context - stand.context
    widths = [w for w in _WIDTHS if w <= room]
    sample = _Sample([], {w: [] for w in widths}, [[] for _ in sessions])
    # The first turn opens and binds everything, and does not count.
    for turn in range(_ROUNDS + 1):
        for _ in range(_PLAIN_STEPS):
            begun = time.perf_counter()
            stand.acceptance.first(stand.slot.verify((stand.token,), stand.context), stand.context + 1)
            sample.plain.extend([time.perf_counter() - begun] if turn else [])
        # Every probe drafts before some width, and another one in every turn.
        for number, width in enumerate(widths):
            probe = (number + turn) % len(sessions)
            draft, verify = _round(stand, sessions[probe], width)
            sample.verify[width].extend([verify] if turn else [])
            sample.draft[probe].extend([draft] if turn else [])
    return sample


def _round(stand: _Stand, session: ort.InferenceSession, width: int) -> tuple[float, float]:
    """Runs one round as decoding does; returns the seconds of a draft step and of the verify pass with its judgement."""
    slot, token, context = stand.slot, stand.token, stand.context
    slot.use_draft(session)
    proposer = SkipProposer(slot, stand.acceptance, FixedExit())
    proposer.propose(token, context, 1)  # binds the draft's buffers
    slot.verify((token,), context)
    begun = time.perf_counter()
    proposals = proposer.propose(token, context, width - 1)
    drafted = time.perf_counter()
    stand.acceptance.judge(slot.verify((token, *proposals), context), proposals, context + 1)
    return (drafted - begun) / (width - 1), time.perf_counter() - drafted


def _fit(context: int, sample: _Sample, probes: Sequence[Bits], weights: NDArray[np.float64]) -> tuple[LatencyRow, float]:
    """Returns the row, and the largest relative error of the fitted drafts."""
    num_layers = len(weights) // 2
    kinds = (slice(0, num_layers), slice(num_layers, None))
    # A sublayer's share goes with the bytes it reads, at a rate of its kind's own: attention has more small operations to a byte.
    units = np.concatenate([weights[k] / max(weights[k].mean(), 1.0) for k in kinds])
    kept = 1 - np.array(probes)
    design = np.stack([np.ones(len(probes)), *((kept[:, k] * units[k]).sum(axis=1) for k in kinds)], axis=1)
    seconds = np.array([statistics.median(times) for times in sample.draft])
    solution = _relative_least_squares(design, seconds)
    error = float(np.abs(design @ solution / seconds - 1).max())
    verify = _verify_by_width(statistics.median(sample.plain), {w: statistics.median(t) for w, t in sample.verify.items()})
    row = LatencyRow(
        context=context,
        verify=verify,
        draft_base=float(solution[0]),
        attention=tuple(float(s) for s in solution[1] * units[kinds[0]]),
        mlp=tuple(float(s) for s in solution[2] * units[kinds[1]]),
    )
    return row, error


def _relative_least_squares(design: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solves for costs of at least 0 that fit every probe with the same relative care."""
    from scipy.optimize import nnls

    scaled = design / seconds[:, None]
    solution, _ = nnls(scaled, np.ones(len(seconds)))
    return np.asarray(solution, dtype=np.float64)


def _verify_by_width(plain: float, measured: dict[int, float]) -> tuple[float, ...]:
    """Returns seconds by width, 1 first; a wider pass is never taken to be cheaper than a narrower one."""
    widths = np.arange(1, MAX_VERIFY_WIDTH + 1)
    known = sorted(measured)
    values = np.interp(widths, [1, *known], [plain, *(measured[w] for w in known)])
    return tuple(float(v) for v in np.maximum.accumulate(values))


def _index(sublayer: Sublayer, num_layers: int) -> int:
    return sublayer.layer + (0 if sublayer.kind == "attention" else num_layers)


def latency_json(table: LatencyTable) -> bytes:
    """Returns the content of `latency.json`."""
    return (json.dumps(dataclasses.asdict(table), indent=1) + "\n").encode()
