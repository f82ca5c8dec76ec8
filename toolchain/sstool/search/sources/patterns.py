"""Skip sets by rule: contiguous blocks in the middle and every other sublayer, the two that people try by hand, and the default set."""

from __future__ import annotations

from typing import Final

from sstool.search.drafts.space import Bits, bits_of, is_draft
from sstool.skip_set import default_skip_set

_BLOCKS: Final = (0.25, 0.4, 0.55)
"""Lengths of the middle blocks, as parts of the model."""


def middle_blocks(num_layers: int) -> list[Bits]:
    """Returns the sets that leave out whole layers in a row: middle ones of a few lengths."""
    blocks = []
    for part in _BLOCKS:
        length = max(1, round(part * num_layers))
        first = (num_layers - length) // 2
        blocks.append(contiguous_block(num_layers, first, length))
    return [b for b in dict.fromkeys(blocks) if is_draft(b)]


def contiguous_block(num_layers: int, first: int, length: int) -> Bits:
    """Returns the set of `length` whole layers from `first`."""
    layer = tuple(int(first <= n < first + length) for n in range(num_layers))
    return (*layer, *layer)


def every_other(num_layers: int) -> list[Bits]:
    """Returns the sets that leave out every other MLP, every other attention and every other layer, the first and last layer kept."""
    odd = tuple(int(n % 2 == 1 and 0 < n < num_layers - 1) for n in range(num_layers))
    none = (0,) * num_layers
    return [b for b in ((*none, *odd), (*odd, *odd), (*odd, *none)) if is_draft(b)]


def default_start(num_layers: int) -> Bits:
    """Returns the set of an export that searches nothing."""
    return bits_of(default_skip_set(num_layers), num_layers)
