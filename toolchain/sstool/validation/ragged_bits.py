"""Compares sequences that share engine passes with the same sequences alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ssruntime.backends.base import Backend, Pass, Slot, StepOutput
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.proposal import Alternative
from sstool.validation.bit_rows import BitRows, KnownRow

MAX_ROWS: Final = 4
_PREFIXES: Final = (19, 3, 140, 1)
"""Number of tokens that each sequence has before the compared passes."""
_WIDTHS: Final = ((1, 1, 1, 1), (5, 1, 3, 16), (2, 0, 7, 1), (1, 2, 1, 0), (16, 16, 16, 16))
"""Query lengths of the sequences in each compared pass; 0: it takes no part."""
_DRAFTED: Final = 4
_PREFILLED: Final = 37
"""Length of a prompt that runs beside verify passes."""


@dataclass(slots=True)
class _Row:
    """One sequence: its slot, its text, and the rows of its passes alone by position."""

    slot: Slot
    ids: list[int]
    start: int
    known: dict[int, KnownRow] = field(default_factory=dict)
    drafted: dict[int, KnownRow] = field(default_factory=dict)

    def verify(self, length: int) -> Pass:
        """Returns the verify pass of some tokens after the prefix."""
        return Pass("verify", self.ids[self.start : self.start + length], self.start)


def compare_ragged(backend: Backend, found: BitRows, ids: Sequence[int], *, exact_drafts: bool = True) -> None:
    """Compares passes that two to four sequences share with the passes of each alone.

    The sequences have different lengths and tokens. Passes are verify passes of different query lengths, with
    and without token trees, draft passes before them that are rejected, and a prompt beside verify passes.

    Args:
        backend: open engines; a draft engine is used if there is one. Nothing is compared if it runs one
            sequence at a time, or the context is too short.
        found: comparisons to add to.
        ids: token ids of a text.
        exact_drafts: whether the draft steps themselves are compared, and not only what follows them.
    """
    prefixes = [n for n in _PREFIXES if n + 2 * MAX_QUERY_LENGTH < backend.max_context][: backend.capabilities.max_rows]
    if len(prefixes) < 2:
        return
    rows: list[_Row] = []
    try:
        for number, prefix in enumerate(prefixes):
            rows.append(_alone(backend, found, ids, prefix, number))
        for widths in _WIDTHS:
            if backend.has_draft:
                _compare_drafts(backend, found if exact_drafts else None, rows)
            _compare_verify(backend, found, rows, widths)
        _compare_trees(backend, found, rows)
        _compare_beside_a_prompt(backend, found, rows)
    finally:
        for row in rows:
            backend.release(row.slot)


def _alone(backend: Backend, found: BitRows, ids: Sequence[int], prefix: int, number: int) -> _Row:
    """Returns a sequence with the rows of its passes alone."""
    length = min(len(ids), prefix + 2 * MAX_QUERY_LENGTH)
    shift = 7 * number + 1
    text = [*ids[shift:], *ids[:shift]][:length]
    row = _Row(backend.acquire(None), text, prefix)
    row.slot.prefill(text[:prefix])
    for position in range(prefix, min(length, prefix + MAX_QUERY_LENGTH)):
        found.keep(position, row.slot.verify((text[position],), position), row.known)
    if backend.has_draft:
        for position, token in enumerate(_wrong(row), prefix):
            found.keep(position, row.slot.draft((token,), position), row.drafted)
    return row


def _wrong(row: _Row) -> list[int]:
    """Returns the last known token and a draft sequence after it that does not fit the text."""
    return [row.ids[row.start], *(row.ids[(5 * i) % row.start] for i in range(1, _DRAFTED))]


def _compare_drafts(backend: Backend, found: BitRows | None, rows: Sequence[_Row]) -> None:
    for offset in range(_DRAFTED):
        passes = [(row.slot, Pass("draft", (_wrong(row)[offset],), row.start + offset)) for row in rows]
        for row, output in zip(rows, backend.run(passes), strict=True):
            if found is not None:
                found.compare("a draft step in a batch", row.start + offset, output, (0,), row.drafted)


def _compare_verify(backend: Backend, found: BitRows, rows: Sequence[_Row], widths: Sequence[int]) -> None:
    chosen = [(row, width) for row, width in zip(rows, widths, strict=False) if width]
    outputs = backend.run([(row.slot, row.verify(width)) for row, width in chosen])
    for (row, width), output in zip(chosen, outputs, strict=True):
        found.compare(f"query length {width} in a batch", row.start, output, range(width), row.known)


def _compare_trees(backend: Backend, found: BitRows, rows: Sequence[_Row]) -> None:
    passes = []
    for number, row in enumerate(rows):
        wanted = row.verify(_DRAFTED)
        if number % 2 == 0 and row.start + _DRAFTED + 2 <= row.slot.alternatives_end:
            wanted = wanted._replace(branches=[Alternative(0, row.ids[0]), Alternative(2, row.ids[1])])
        passes.append((row.slot, wanted))
    for row, output in zip(rows, backend.run(passes), strict=True):
        found.compare("a token tree in a batch", row.start, output, range(_DRAFTED), row.known)


def _compare_beside_a_prompt(backend: Backend, found: BitRows, rows: Sequence[_Row]) -> None:
    """Runs the first sequence's text as a prompt while the others verify, and goes on with it alone."""
    first, *others = rows
    length = min(_PREFILLED, len(first.ids) - 1, first.start + len(first.known))
    wanted = Pass("prefill", first.ids[:length], 0)
    outputs: list[StepOutput] = backend.run([(first.slot, wanted), *((row.slot, row.verify(_DRAFTED)) for row in others)])
    prompt = dataclasses.replace(first, start=length)
    if length - 1 in first.known:
        found.compare("a prompt in a batch", length - 1, outputs[0], (0,), first.known)
    for row, output in zip(others, outputs[1:], strict=True):
        found.compare("a pass beside a prompt", row.start, output, range(_DRAFTED), row.known)
    if length in first.known:
        found.compare("after a prompt in a batch", length, prompt.slot.verify((first.ids[length],), length), (0,), first.known)
