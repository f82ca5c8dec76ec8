"""Skip sets by rule: contiguous blocks in the middle, every other sublayer, and the default of an export."""

from __future__ import annotations

from typing import Final

from sstool.search.drafts.space import Bits, bits_of, skips_some
from sstool.skip_set import default_skip_set

_BLOCKS: Final = (0.25, 0.4, 0.55)
"""Lengths of the middle blocks, as shares of the layers."""


def middle_blocks(num_layers: int) -> list[Bits]:
    """Returns sets that skip a contiguous block of whole layers in the middle, of several lengths."""
    blocks = []
    for part in _BLOCKS:
        length = max(1, round(part * num_layers))
        first = (num_layers - length) // 2
        blocks.append(contiguous_block(num_layers, first, length))
    return [b for b in dict.fromkeys(blocks) if skips_some(b)]


def contiguous_block(num_layers: int, first: int, length: int) -> Bits:
    """Returns the set that skips `length` whole layers, from layer `first` on."""
    layer = tuple(int(first <= n < first + length) for n in range(num_layers))
    return (*layer, *layer)


def every_other(num_layers: int) -> list[Bits]:
    """Returns sets that skip every other MLP, layer or attention, except in the first and last layer."""
    odd = tuple(int(n % 2 == 1 and 0 < n < num_layers - 1) for n in range(num_layers))
    none = (0,) * num_layers
    return [b for b in ((*none, *odd), (*odd, *odd), (*odd, *none)) if skips_some(b)]


def default_start(num_layers: int) -> Bits:
    """Returns the default skip set, which an export without a search uses."""
    return bits_of(default_skip_set(num_layers), num_layers)
