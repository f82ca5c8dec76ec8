"""A model's sublayers as coordinates: skip sets as rows of zeros and ones, attention first, then the MLPs."""

from __future__ import annotations

from collections.abc import Sequence

from ssruntime.artifact import SkipSet

Bits = tuple[int, ...]
"""One number a sublayer: 1 where it is skipped. Layer i's attention is at i, its MLP at num_layers + i."""


def bits_of(skip: SkipSet, num_layers: int) -> Bits:
    """Returns a skip set's row of `2 * num_layers` zeros and ones."""
    attention, mlp = set(skip.attention), set(skip.mlp)
    return (*(int(n in attention) for n in range(num_layers)), *(int(n in mlp) for n in range(num_layers)))


def skip_of(bits: Sequence[int]) -> SkipSet:
    """Returns the skip set of a row."""
    num_layers = len(bits) // 2
    return SkipSet(
        attention=tuple(n for n in range(num_layers) if bits[n]),
        mlp=tuple(n for n in range(num_layers) if bits[num_layers + n]),
    )


def is_draft(bits: Sequence[int]) -> bool:
    """Whether something is skipped and something is left."""
    return 0 < sum(bits) < len(bits)
