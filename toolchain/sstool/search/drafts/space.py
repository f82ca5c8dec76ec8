"""The search space: skip sets as rows of zeros and ones, one per sublayer, first attention, then MLPs."""

from __future__ import annotations

from collections.abc import Sequence

from ssruntime.artifact import SkipSet

Bits = tuple[int, ...]
"""One number per sublayer, 1 if it is skipped: layer i's attention at index i, its MLP at num_layers + i."""


def bits_of(skip: SkipSet, num_layers: int) -> Bits:
    """Returns a skip set as `2 * num_layers` zeros and ones."""
    attention, mlp = set(skip.attention), set(skip.mlp)
    return (*(int(n in attention) for n in range(num_layers)), *(int(n in mlp) for n in range(num_layers)))


def skip_of(bits: Sequence[int]) -> SkipSet:
    """Returns the skip set of a row of zeros and ones."""
    num_layers = len(bits) // 2
    return SkipSet(
        attention=tuple(n for n in range(num_layers) if bits[n]),
        mlp=tuple(n for n in range(num_layers) if bits[num_layers + n]),
    )


def is_draft(bits: Sequence[int]) -> bool:
    """Returns whether at least one sublayer is skipped and at least one is kept."""
    return 0 < sum(bits) < len(bits)
