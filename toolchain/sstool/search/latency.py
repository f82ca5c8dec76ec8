"""What each part of decoding takes on this machine, measured once, so that a skip set always scores the same.

Draft and verify alternate, as in decoding: each leaves the caches and the thread pools as the other finds them. Host work (sampling,
bookkeeping) is inside the times. A draft has a size: a base and a share for each sublayer it keeps, fitted to probe drafts. What its steps
take is nearly that, but not quite, as the processor's caches keep more of a small draft than of a large one, and as the first step,
after verify has read all the weights, finds less there than the later ones do (512 wide, 24 layers, keeping half: 4.0 ms, then 3.1 ms).
So the first step and a later one each have a factor by the draft's size.
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
_TURNS: Final = (4, 20)
"""Least and most rounds of each width and of each probe."""
_SECONDS: Final = 10.0
"""After so long at one context no further turn begins, beyond the least."""
_QUICK_STEPS: Final = 6
"""Steps that tell roughly what a step takes."""
_PLAIN_STEPS: Final = 4
"""Plain steps in a row, as plain decoding has no draft between them."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Seconds by what was measured: plain steps, verify passes by width, the first and the later steps of drafts by probe."""

    plain: list[float]
    verify: dict[int, list[float]]
    first: list[list[float]]
    later: list[list[float]]

    def stalls(self) -> float:
        """Returns how much more everything took together than if each time had been the median of its like, at least 1.

        A text's time is the sum of its steps', the few that the system held up among them, which medians leave out (measured on a shared
        machine: 4 %). There are too few of them to see which part they hit, and they hit all alike.
        """
        groups = [g for g in (self.plain, *self.verify.values(), *self.first, *self.later) if g]
        return max(1.0, sum(map(sum, groups)) / sum(len(group) * statistics.median(group) for group in groups))


@dataclass(frozen=True, slots=True)
class _Round:
    """Seconds of one round; `later` is a step's mean, None where the draft has one step."""

    first: float
    later: float | None
    verify: float


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
    """Returns the skip sets whose drafts the costs are fitted to: `ladder_sets`, and others that tell the kinds' costs apart."""
    layers = range(num_layers)
    one_sided = [_keeping([0], layers, num_layers), _keeping(layers, layers[-1:], num_layers), _keeping(layers, layers[::2], num_layers)]
    ladder = ladder_sets(num_layers)
    return ladder + [bits for bits in dict.fromkeys(one_sided) if bits not in ladder and 0 < sum(bits) < len(bits)]


def ladder_sets(num_layers: int) -> list[Bits]:
    """Returns skip sets from one that keeps little to one that keeps nearly all, of either kind as much; none for a single layer."""
    counts = dict.fromkeys(max(1, round(part * num_layers)) for part in (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4))
    spread = [_keeping(_spread(count, 0, num_layers), _spread(count, 1, num_layers), num_layers) for count in counts if count < num_layers]
    nearly_all = _keeping(range(num_layers), range(num_layers - 1), num_layers)
    return [*spread, *([nearly_all] if num_layers > 1 else [])]


def _spread(count: int, shift: int, num_layers: int) -> list[int]:
    """Returns layers evenly apart, moved by half their distance for each `shift`, so that few layers keep both kinds."""
    return [(2 * n + shift) * num_layers // (2 * count) for n in range(count)]


def _keeping(attention: Sequence[int], mlp: Sequence[int], num_layers: int) -> Bits:
    layers = range(num_layers)
    return bits_of(SkipSet(attention=tuple(set(layers) - set(attention)), mlp=tuple(set(layers) - set(mlp))), num_layers)


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
    sample = _Sample([], {w: [] for w in widths}, [[] for _ in sessions], [[] for _ in sessions])
    least, most = _TURNS
    _turn(stand, sessions, widths, 0)  # opens and binds everything, and does not count
    begun = time.perf_counter()
    for turn in range(1, most + 1):
        if turn > least and time.perf_counter() - begun > _SECONDS:
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
        stand.acceptance.first(stand.slot.verify((stand.token,), stand.context), stand.context + 1)
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
    proposer = SkipProposer(slot, stand.acceptance, FixedExit())
    proposer.propose(token, context, 1)  # binds the draft's buffers
    slot.verify((token,), context)
    begun = time.perf_counter()
    proposals = proposer.propose(token, context, 1)
    first = time.perf_counter()
    proposals += proposer.propose(proposals[0], context + 1, width - 2)
    drafted = time.perf_counter()
    stand.acceptance.judge(slot.verify((token, *proposals), context), proposals, context + 1)
    verify = time.perf_counter() - drafted
    return _Round(first - begun, (drafted - first) / (width - 2) if width > 2 else None, verify)


def _fit(context: int, sample: _Sample, probes: Sequence[Bits], weights: NDArray[np.float64]) -> tuple[LatencyRow, float]:
    """Returns the row, and the largest relative error of the fitted drafts."""
    num_layers = len(weights) // 2
    kinds = (slice(0, num_layers), slice(num_layers, None))
    # A sublayer's share goes with the bytes it reads, at a rate of its kind's own: attention has more small operations to a byte.
    units = np.concatenate([weights[k] / max(weights[k].mean(), 1.0) for k in kinds])
    kept = 1 - np.array(probes)
    design = np.stack([np.ones(len(probes)), *((kept[:, k] * units[k]).sum(axis=1) for k in kinds)], axis=1)
    first = np.array([statistics.median(times) for times in sample.first])
    # Where the cache has no room for a second step, a later one is taken to be like the first.
    later = np.array([statistics.median(times or [seconds]) for times, seconds in zip(sample.later, first, strict=True)])
    solution = _relative_least_squares(design, first)
    sizes = design @ solution
    ladder = _rising(sizes, probes)
    factors = [(seconds / sizes)[ladder] for seconds in (first, later)]
    errors = [sizes * np.interp(sizes, sizes[ladder], f) / seconds - 1 for f, seconds in zip(factors, (first, later), strict=True)]
    verify = _verify_by_width(statistics.median(sample.plain), {w: statistics.median(t) for w, t in sample.verify.items()})
    stalls = sample.stalls()
    row = LatencyRow(
        context=context,
        verify=tuple(stalls * v for v in verify),
        draft_base=float(stalls * solution[0]),
        attention=tuple(float(stalls * s) for s in solution[1] * units[kinds[0]]),
        mlp=tuple(float(stalls * s) for s in solution[2] * units[kinds[1]]),
        sizes=tuple(float(stalls * s) for s in sizes[ladder]),
        first=tuple(float(f) for f in factors[0]),
        later=tuple(float(f) for f in factors[1]),
    )
    return row, float(np.abs(errors).max())


def _rising(sizes: NDArray[np.float64], probes: Sequence[Bits]) -> NDArray[np.int64]:
    """Returns the places of the ladder's probes, by rising size and without equals; of all probes where there is no ladder."""
    ladder = set(ladder_sets(len(probes[0]) // 2)) or set(probes)
    places = np.flatnonzero([bits in ladder for bits in probes])
    return places[np.unique(sizes[places], return_index=True)[1]]


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
