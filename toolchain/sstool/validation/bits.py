"""Tests whether every kind of pass gives the logits of autoregressive decoding to the bit on this machine.

Where the test passes, speculative decoding decides each token from the same numbers as autoregressive
decoding. Elsewhere two tokens that are almost equally good can swap (see `sstool.validation.lossless`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.backends.base import Backend, Slot, StepOutput
from ssruntime.backends.ort.backend import OrtBackend
from ssruntime.backends.ort.slot import PREFILL_CHUNK
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.proposal import Alternative, TokenTree
from ssruntime.results import logits_digest
from sstool.artifact_files.bits_record import BitsReport, Kernels

_SEED: Final = 2
_STARTS: Final = (24, 1100)
"""Context lengths before the compared rounds; one is longer than a kernel's usual block of keys."""
_DRAFTED: Final = 4
"""Length of the draft sequences that are rejected."""
_PROMPTS: Final = (1, 17, 33, 129, PREFILL_CHUNK + 1)
"""Lengths of the compared prompts. Those around the kernel's own blocks come on top."""
_SAMPLED: Final = 512
"""Number of logits of each row that are kept, to tell the size of a difference."""
GATE_CONTEXT: Final = max(_STARTS) + MAX_QUERY_LENGTH + 1
"""Positions that the whole test needs."""


@dataclass(slots=True)
class _Rows:
    """The rows of autoregressive decoding by position (digests, samples), and comparisons with them."""

    vocab_size: int
    digests: dict[int, bytes] = field(default_factory=dict)
    samples: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    largest: float = 0.0
    compared: int = 0
    differing: int = 0
    first: str | None = None

    def keep(self, position: int, output: StepOutput) -> None:
        """Stores the rows of a pass that begins at `position`."""
        for offset, row in enumerate(output.logits):
            self.digests[position + offset] = logits_digest(row)
            self.samples[position + offset] = self._sample(row)

    def compare(self, kind: str, position: int, output: StepOutput, rows: Iterable[int]) -> None:
        """Compares rows of a pass with the stored ones at `position` and the positions after it."""
        for at, row in enumerate(rows, position):
            self.compared += 1
            if logits_digest(output.logits[row]) != self.digests[at]:
                self.differing += 1
                self.first = self.first or kind
                apart = np.abs(self._sample(output.logits[row]) - self.samples[at]).max()
                scale = np.abs(output.logits[row]).max()
                self.largest = max(self.largest, float(apart / scale) if scale > 0 else float(apart))

    def _sample(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        return row[:: -(-self.vocab_size // _SAMPLED)].copy()


def measure_bits(backend: Backend) -> BitsReport:
    """Returns how passes of every kind compare with autoregressive decoding, on the machine at hand.

    The passes: every query length that decoding uses, passes after a rejected draft, token trees and the
    passes after them, prompts of many lengths, and another capacity of the KV cache.

    Args:
        backend: open engines of an artifact, loaded with `bit_exact`; a draft engine is used if there is one.
    """
    assert isinstance(backend, OrtBackend)
    found = _Rows(backend.vocab_size)
    longest = min(backend.max_context, GATE_CONTEXT)
    ids = [int(i) for i in np.random.default_rng(_SEED).integers(0, backend.vocab_size, longest)]
    slot = backend.acquire(None)
    try:
        for start in _fitting(longest):
            _compare_rounds(slot, backend, found, ids, start)
        _compare_prompts(slot, found, ids)
    finally:
        backend.release(slot)
    return BitsReport(
        rows=found.compared,
        differing=found.differing,
        first=found.first,
        kernels=Kernels.here(backend.threads),
        largest=found.largest,
    )


def _fitting(length: int) -> list[int]:
    """Returns the context lengths before the rounds, so short that rounds fit into `length` positions."""
    room = max(1, length - MAX_QUERY_LENGTH - 1)
    return sorted({min(start, room) for start in _STARTS})


def _compare_rounds(slot: Slot, backend: OrtBackend, found: _Rows, ids: Sequence[int], start: int) -> None:
    """Compares passes that begin after `start` tokens with passes of one token."""
    stop = min(start + MAX_QUERY_LENGTH + 1, len(ids))
    slot.prefill(ids[:start])
    for position in range(start, stop):
        found.keep(position, slot.verify((ids[position],), position))
    for length in range(2, stop - start):
        kind = f"query length {length}"
        found.compare(kind, start, slot.verify(ids[start : start + length], start), range(length))
        # The KV that the pass wrote decides the row after it.
        found.compare(f"after {kind}", start + length, slot.verify((ids[start + length],), start + length), (0,))
    if stop - start <= _DRAFTED + 1:
        return
    _compare_rejection(slot, found, ids, start, has_draft=backend.has_draft)
    if start + _DRAFTED + 3 <= slot.alternatives_end:
        _compare_trees(slot, found, ids, start)
    other = backend.new_slot(stop)
    other.prefill(ids[:start])
    found.compare("another capacity", start, other.verify(ids[start : start + _DRAFTED], start), range(_DRAFTED))


def _compare_rejection(slot: Slot, found: _Rows, ids: Sequence[int], start: int, *, has_draft: bool) -> None:
    wrong = [(token + 1) % (max(ids) + 1) for token in ids[start + 1 : start + 1 + _DRAFTED]]
    trunk = [ids[start], *wrong]
    if has_draft:
        for offset, token in enumerate(trunk):
            slot.draft((token,), start + offset)
    found.compare("a rejected draft", start, slot.verify(trunk, start), (0,))
    found.compare("after a rejected draft", start + 1, slot.verify(ids[start + 1 : start + 1 + _DRAFTED], start + 1), range(_DRAFTED))


def _compare_trees(slot: Slot, found: _Rows, ids: Sequence[int], start: int) -> None:
    """Compares the trunk of a token tree, and the pass that runs an accepted alternative again."""
    trunk = ids[start : start + _DRAFTED]
    tree = TokenTree(trunk, [Alternative(0, ids[0]), Alternative(2, ids[1])])
    found.compare("a token tree", start, slot.verify(tree.trunk, start, tree.branches), range(len(trunk)))
    right = ids[start + 1]
    drafted = TokenTree([ids[start], ids[0], ids[1]], [Alternative(0, right)])
    found.compare("a token tree", start, slot.verify(drafted.trunk, start, drafted.branches), (0,))
    found.compare("after an alternative", start + 1, slot.verify(ids[start + 1 : start + 4], start + 1), range(3))


def _compare_prompts(slot: Slot, found: _Rows, ids: Sequence[int]) -> None:
    """Compares prompts of many lengths with the same tokens in the widest passes of decoding."""
    lengths = sorted({n for n in (*_PROMPTS, *_around_blocks(slot.attention_block)) if n < len(ids)})
    for position in range(0, max(lengths, default=0) + 1, MAX_QUERY_LENGTH):
        found.keep(position, slot.verify(ids[position : position + MAX_QUERY_LENGTH], position))
    for length in lengths:
        kind = f"a prompt of {length} tokens"
        found.compare(kind, length - 1, slot.prefill(ids[:length]), (0,))
        found.compare(f"after {kind}", length, slot.verify((ids[length],), length), (0,))


def _around_blocks(block: int) -> Iterator[int]:
    """Yields the lengths of one and of the most blocks that fit into a pass, and one and two tokens more."""
    for blocks in {1, max(1, PREFILL_CHUNK // block)}:
        yield from range(blocks * block, blocks * block + 3)
