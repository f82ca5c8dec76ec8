"""Tests whether every kind of pass gives the logits of autoregressive decoding to the bit on this machine.

Where the test passes, speculative decoding decides each token from the same numbers as autoregressive
decoding. Elsewhere two tokens that are almost equally good can swap (see `sstool.validation.lossless`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from ssruntime.backends.base import Backend, Slot
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.proposal import Alternative, TokenTree
from sstool.artifact_files.bits_record import BitsReport, Kernels
from sstool.validation.bit_rows import BitRows
from sstool.validation.ragged_bits import MAX_ROWS, compare_ragged

_SEED: Final = 2
_STARTS: Final = (24, 1100)
"""Context lengths before the compared rounds; one is longer than a kernel's usual block of keys."""
_DRAFTED: Final = 4
"""Length of the draft sequences that are rejected."""
_PROMPTS: Final = (1, 17, 33, 129)
"""Lengths of the compared prompts. Those around the kernel's own blocks and passes come on top."""
GATE_CONTEXT: Final = max(_STARTS) + MAX_QUERY_LENGTH + 1
"""Positions that the whole test needs."""
GATE_SEQUENCES: Final = MAX_ROWS
"""Sequences that the whole test needs."""


def measure_bits(backend: Backend, *, exact_drafts: bool = True) -> BitsReport:
    """Returns how passes of every kind compare with autoregressive decoding, on the machine at hand.

    The passes: every query length that decoding uses, passes after a rejected draft, token trees and the
    passes after them, prompts of many lengths, another capacity of the KV cache, and passes that several
    sequences share.

    Args:
        backend: open engines of an artifact, loaded with `bit_exact`; a draft engine is used if there is one.
        exact_drafts: whether draft steps in a batch are compared too (see `Manifest.has_exact_drafts`).
    """
    found = BitRows(backend.vocab_size)
    longest = min(backend.max_context, GATE_CONTEXT)
    ids = [int(i) for i in np.random.default_rng(_SEED).integers(0, backend.vocab_size, longest)]
    slot = backend.acquire(None)
    try:
        for start in _fitting(longest):
            _compare_rounds(slot, backend, found, ids, start)
        _compare_prompts(slot, found, ids)
    finally:
        backend.release(slot)
    compare_ragged(backend, found, ids, exact_drafts=exact_drafts)
    return BitsReport(
        rows=found.compared,
        differing=found.differing,
        first=found.first,
        kernels=Kernels.here(backend.threads, backend.device),
        largest=found.largest,
        largest_absolute=found.largest_absolute,
    )


def _fitting(length: int) -> list[int]:
    """Returns the context lengths before the rounds, so short that rounds fit into `length` positions."""
    room = max(1, length - MAX_QUERY_LENGTH - 1)
    return sorted({min(start, room) for start in _STARTS})


def _compare_rounds(slot: Slot, backend: Backend, found: BitRows, ids: Sequence[int], start: int) -> None:
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


def _compare_rejection(slot: Slot, found: BitRows, ids: Sequence[int], start: int, *, has_draft: bool) -> None:
    wrong = [(token + 1) % (max(ids) + 1) for token in ids[start + 1 : start + 1 + _DRAFTED]]
    trunk = [ids[start], *wrong]
    if has_draft:
        for offset, token in enumerate(trunk):
            slot.draft((token,), start + offset)
    found.compare("a rejected draft", start, slot.verify(trunk, start), (0,))
    found.compare("after a rejected draft", start + 1, slot.verify(ids[start + 1 : start + 1 + _DRAFTED], start + 1), range(_DRAFTED))


def _compare_trees(slot: Slot, found: BitRows, ids: Sequence[int], start: int) -> None:
    """Compares the trunk of a token tree, and the pass that runs an accepted alternative again."""
    trunk = ids[start : start + _DRAFTED]
    tree = TokenTree(trunk, [Alternative(0, ids[0]), Alternative(2, ids[1])])
    found.compare("a token tree", start, slot.verify(tree.trunk, start, tree.branches), range(len(trunk)))
    right = ids[start + 1]
    drafted = TokenTree([ids[start], ids[0], ids[1]], [Alternative(0, right)])
    found.compare("a token tree", start, slot.verify(drafted.trunk, start, drafted.branches), (0,))
    found.compare("after an alternative", start + 1, slot.verify(ids[start + 1 : start + 4], start + 1), range(3))


def _compare_prompts(slot: Slot, found: BitRows, ids: Sequence[int]) -> None:
    """Compares prompts of many lengths with the same tokens in the widest passes of decoding."""
    lengths = sorted({n for n in (*_PROMPTS, *_around_blocks(slot)) if n < len(ids)})
    for position in range(0, max(lengths, default=0) + 1, MAX_QUERY_LENGTH):
        found.keep(position, slot.verify(ids[position : position + MAX_QUERY_LENGTH], position))
    for length in lengths:
        kind = f"a prompt of {length} tokens"
        found.compare(kind, length - 1, slot.prefill(ids[:length]), (0,))
        found.compare(f"after {kind}", length, slot.verify((ids[length],), length), (0,))


def _around_blocks(slot: Slot) -> Iterator[int]:
    """Yields the lengths of one and of the most blocks that fit into a pass, and one and two tokens more."""
    block = slot.attention_block
    yield slot.prefill_chunk + 1
    for blocks in {1, max(1, slot.prefill_chunk // block)}:
        yield from range(blocks * block, blocks * block + 3)
