"""Measures how far an artifact's logits are from its checkpoint's, in the passes that decoding runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.artifact import SkipSet
from ssruntime.backends.base import Backend, Slot
from ssruntime.errors import UnsupportedModelError
from ssruntime.proposal import Alternative, TokenTree
from sstool.checkpoint.describe import Checkpoint, describe_checkpoint
from sstool.validation.reference import CHUNK, ReferenceLogits, reference_logits

MAX_POSITIONS: Final = 256
WIDTHS: Final = (1, 1, 1, 4, 4, 16, 16, 1, 4, 16)
"""Query lengths of the passes after the prefill; each pass attends to every position before it."""
_MARGIN: Final = 64
_BEYOND_WINDOWS: Final = 16
_MAX_STRETCH: Final = 1024
"""Longest sequence (tokens) that is run only to go past the original context of RoPE scaling."""
_SEED: Final = 0
_TREE_ROWS: Final = 6
"""Rows of the verify pass over a token tree: the last token, two drafted tokens and three alternatives."""
_TREE_POSITIONS: Final = 4
"""Positions of which `_run_tree` returns logits."""


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The difference between an engine's logits and the reference's, over all compared positions.

    Attributes:
        max_relative: max |ours - reference| / max |reference|.
        mean_relative: mean |ours - reference| / max |reference|.
        min_cosine: smallest cosine between the two rows of logits at a position.
        top1_agreement: fraction of positions with the same most probable token.
        positions: number of compared positions.
        sequence: length of the sequence in tokens.
        worst: kind of pass with the largest error: `prefill`, `alternatives` (a token tree), or `width N` (a
            pass of query length N, which is 1, 4 or 16).
        tolerance: largest allowed `max_relative`.
    """

    max_relative: float
    mean_relative: float
    min_cosine: float
    top1_agreement: float
    positions: int
    sequence: int
    worst: str
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the largest error is within the tolerance."""
        return self.max_relative <= self.tolerance

    def to_json(self) -> dict[str, float | int | str | bool]:
        """Returns the figures and the verdict."""
        return {**dataclasses.asdict(self), "passed": self.passed}


@dataclass(frozen=True, kw_only=True)
class ParityPlan:
    """A sequence and the passes it is run in: the prefill, then passes of several query lengths.

    Attributes:
        ids: token ids of the sequence.
        prefill: number of tokens in the prefill.
        widths: query lengths of the passes after the prefill.
        positions: positions whose logits are compared, ascending.
        beside: first of the four positions at which a token tree with alternatives (side branches, one token
            long) is verified; None if there is no room for one.
    """

    ids: tuple[int, ...]
    prefill: int
    widths: tuple[int, ...]
    positions: tuple[int, ...]
    beside: int | None


def plan_parity(checkpoint: Checkpoint, max_context: int) -> ParityPlan:
    """Returns the sequence to run and its passes.

    The sequence is longer than twice the widest sliding window, and longer than the original context of RoPE
    scaling if that takes at most `_MAX_STRETCH` tokens.

    Args:
        checkpoint: description of the model.
        max_context: number of positions that the engine has.
    """
    windows = {layer.window for layer in checkpoint.attention if layer.window is not None}
    length = max(MAX_POSITIONS, *(2 * window + _BEYOND_WINDOWS for window in windows)) if windows else MAX_POSITIONS
    if checkpoint.original_context < checkpoint.max_context and checkpoint.original_context + _MARGIN <= _MAX_STRETCH:
        length = max(length, checkpoint.original_context + _MARGIN)
    length = min(length, max_context)
    widths: list[int] = []
    for width in WIDTHS:
        if sum(widths) + width < length:
            widths.append(width)
    prefill = length - sum(widths)
    edges = {w + step for w in windows for step in (-1, 0, 1) if w + step < prefill}
    beside = min(prefill, *windows) - _TREE_ROWS if windows else prefill - _TREE_ROWS
    if beside > 0:
        edges |= set(range(beside, beside + _TREE_POSITIONS))
    room = MAX_POSITIONS - sum(widths)
    spread = range(prefill) if prefill <= room else np.linspace(0, prefill - 1, room - len(edges)).round().astype(int)
    compared = sorted(edges | {int(p) for p in spread})
    ids = np.random.default_rng(_SEED).integers(0, checkpoint.vocab_size, length)
    return ParityPlan(
        ids=tuple(int(i) for i in ids),
        prefill=prefill,
        widths=tuple(widths),
        positions=(*compared, *range(prefill, length)),
        beside=beside if beside > 0 else None,
    )


def parity_context(folder: Path, max_context: int) -> int:
    """Returns how many positions of a checkpoint's engine `measure_parity` uses, at most `max_context`."""
    return len(plan_parity(describe_checkpoint(folder), max_context).ids)


def measure_parity(backend: Backend, folder: Path, *, draft: SkipSet | None = None, dtype: str = "fp32") -> ParityReport:
    """Returns how far the verify engine's logits, or the draft engine's, are from the checkpoint's.

    Args:
        backend: the open engines of the artifact.
        folder: the checkpoint that the artifact was exported from.
        draft: skip set of the draft. If given, the draft engine is compared with the checkpoint, whose
            skipped sublayers then output zero.
        dtype: data type of the artifact.

    Raises:
        CheckpointError: if the folder holds no valid checkpoint.
        UnsupportedModelError: if transformers cannot run the checkpoint, or its vocabulary size is not the
            engine's.
    """
    checkpoint = describe_checkpoint(folder)
    if checkpoint.vocab_size != backend.vocab_size:
        raise UnsupportedModelError(
            f"{folder}: expected a vocabulary of {backend.vocab_size} as in the artifact, found {checkpoint.vocab_size}",
            "pass the model that the artifact was exported from",
        )
    plan = plan_parity(checkpoint, backend.max_context)
    reference = reference_logits(folder, plan.ids, plan.positions, skip=draft, dtype=dtype)
    return compare_with_reference(backend, plan, reference, draft=draft is not None)


def compare_with_reference(backend: Backend, plan: ParityPlan, reference: ReferenceLogits, *, draft: bool = False) -> ParityReport:
    """Returns how far an engine's logits are from the reference's when it runs the plan.

    Args:
        backend: the open engines.
        plan: the sequence and its passes.
        reference: logits of the checkpoint at `plan.positions`.
        draft: whether the draft engine runs instead of the verify engine.
    """
    slot = backend.acquire(None)
    try:
        rows = _run(slot, plan, draft=draft)
    finally:
        backend.release(slot)
    place = {position: row for row, position in enumerate(plan.positions)}
    wanted = reference.logits[[place[row.position] for row in rows]]
    return _report(np.stack([row.logits for row in rows]), wanted, [row.kind for row in rows], plan, reference.tolerance)


def require_parity(report: ParityReport, what: str) -> None:
    """Raises UnsupportedModelError, with the figures, if a report did not pass."""
    if not report.passed:
        raise UnsupportedModelError(
            f"{what}: the exported graph is not the checkpoint's model: logits differ by {report.max_relative:.1e} of their scale"
            f" ({report.worst}; mean {report.mean_relative:.1e}, cosine {report.min_cosine:.6f},"
            f" same top token at {report.top1_agreement:.0%} of {report.positions} positions); the limit is {report.tolerance:.0e}",
            "nothing was published; this model cannot be exported yet",
        )


@dataclass(frozen=True, slots=True)
class _Row:
    position: int
    kind: str
    logits: NDArray[np.float32]


def _run(slot: Slot, plan: ParityPlan, *, draft: bool) -> list[_Row]:
    """Returns the compared rows.

    The passes in their order: a token tree (verify engine only), the prefill in chunks of `CHUNK`, the
    prefill in the chunks of a prompt (verify engine only), and one pass for each query length of the plan.
    """
    forward = slot.draft_forward if draft else slot.forward
    prompt = plan.ids[: plan.prefill]
    chosen = [p for p in plan.positions if p < plan.prefill]
    rows = [] if draft or plan.beside is None or slot.alternatives_end == 0 else _run_tree(slot, plan.ids, plan.beside)
    for begin in range(0, plan.prefill, CHUNK):
        part = [p for p in chosen if begin <= p < begin + CHUNK]
        output = forward(prompt[begin : begin + CHUNK], begin, [p - begin for p in part] or (0,))
        rows += [_Row(p, "prefill", row.copy()) for p, row in zip(part, output.logits, strict=bool(part))]
    if not draft:
        rows.append(_Row(plan.prefill - 1, "prefill", slot.prefill(prompt).logits[-1].copy()))
    start = plan.prefill
    for width in plan.widths:
        ids = plan.ids[start : start + width]
        output = forward(ids, start, range(width)) if draft else slot.verify(ids, start)
        rows += [_Row(start + i, f"width {width}", row.copy()) for i, row in enumerate(output.logits)]
        start += width
    return rows


def _run_tree(slot: Slot, ids: Sequence[int], start: int) -> list[_Row]:
    """Returns the rows of a verify pass over a token tree, and of a pass after it.

    The last token of the draft sequence is wrong, and the right one is among the alternatives. As after its
    acceptance, the next pass runs the right one again, as the first token of its trunk.
    """
    slot.prefill(ids[:start])
    before, token, right, after = ids[start : start + _TREE_POSITIONS]
    tree = TokenTree([before, token, after], [Alternative(0, after), Alternative(1, before), Alternative(1, right)])
    output = slot.verify(tree.trunk, start, tree.branches)
    rows = [output.logits[n].copy() for n in (0, 1, tree.branch_row(2))]
    rows.append(slot.verify([right, after], start + 2).logits[1].copy())
    return [_Row(start + n, "alternatives", row) for n, row in enumerate(rows)]


def _report(
    ours: NDArray[np.float32], reference: NDArray[np.float32], kinds: Sequence[str], plan: ParityPlan, tolerance: float
) -> ParityReport:
    scale = float(np.abs(reference).max())
    error = np.abs(ours - reference)
    # NaN counts as an infinite error, so that the report still holds numbers.
    error = np.where(np.isnan(error), np.inf, error)
    rows = error.max(axis=1)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(reference, axis=1)
    cosine = np.sum(ours * reference, axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    return ParityReport(
        max_relative=float(rows.max()) / scale,
        mean_relative=float(error.mean()) / scale,
        min_cosine=float(np.nan_to_num(cosine, nan=-1.0).min()),
        top1_agreement=float(np.mean(ours.argmax(axis=1) == reference.argmax(axis=1))),
        positions=len(plan.positions),
        sequence=len(plan.ids),
        worst=kinds[int(rows.argmax())],
        tolerance=tolerance,
    )
