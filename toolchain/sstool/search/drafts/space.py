"""The search space: what a draft reads of each sublayer, within the memory for own weights.

A point says of each sublayer whether it is skipped. Where there is memory for own weights, it has one more
number: 1 gives int4 weights to what is kept, the largest parts first, as far as they fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ssruntime.artifact import LowBitSet, SkipSet
from sstool.graph.sublayers import Sublayer
from sstool.quantize.low_bit_draft import fitting_parts

Bits = tuple[int, ...]
"""One number per sublayer: that of layer i's attention at index i, that of its MLP at num_layers + i."""
Point = tuple[int, ...]
"""`Bits` of the skipped sublayers; in a space with own weights, a 1 after them if the draft has any."""

NO_OWN_WEIGHTS: Final = LowBitSet()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A draft that is or could be tried.

    Attributes:
        skipped: 1 for each sublayer that is left out.
        int4: 1 for each sublayer with int4 weights of its own; none of them is left out.
        int4_head: whether the LM head has int4 weights of its own.
    """

    skipped: Bits
    int4: Bits
    int4_head: bool = False

    @property
    def has_own_weights(self) -> bool:
        """Whether any part has int4 weights of its own."""
        return self.int4_head or any(self.int4)

    @property
    def is_draft(self) -> bool:
        """Whether some sublayer is kept, and the draft is not the whole model over shared weights."""
        return sum(self.skipped) < len(self.skipped) and (any(self.skipped) or self.has_own_weights)

    def skip_set(self) -> SkipSet:
        """Returns the sublayers that are left out."""
        return skip_of(self.skipped)

    def low_bit_set(self) -> LowBitSet:
        """Returns the parts with int4 weights of their own."""
        parts = skip_of(self.int4)
        return LowBitSet(attention=parts.attention, mlp=parts.mlp, head=self.int4_head)


def candidate_of(skip: SkipSet, num_layers: int, int4: LowBitSet = NO_OWN_WEIGHTS) -> Candidate:
    """Returns the candidate that skips some sublayers and has own weights for others."""
    own = SkipSet(attention=int4.attention, mlp=int4.mlp)
    return Candidate(bits_of(skip, num_layers), bits_of(own, num_layers), int4.head)


def sharing(skipped: Bits) -> Candidate:
    """Returns the candidate that skips some sublayers and has no own weights."""
    return Candidate(skipped, (0,) * len(skipped))


@dataclass(frozen=True, kw_only=True)
class DraftSpace:
    """All candidates of a search.

    Attributes:
        num_layers: number of layers of the model.
        sizes: bytes that each part takes in int4; None stands for the LM head. Empty without own weights.
        room: most bytes of own weights.
    """

    num_layers: int
    sizes: Mapping[Sublayer | None, int] = field(default_factory=dict)
    room: float = 0.0

    @property
    def has_own_weights(self) -> bool:
        """Whether there is room for own weights of any part."""
        return bool(self.sizes) and min(self.sizes.values()) <= self.room

    @property
    def num_numbers(self) -> int:
        """The length of a point."""
        return 2 * self.num_layers + self.has_own_weights

    @property
    def num_points(self) -> int:
        """The number of points, without those that keep nothing or all of the shared weights."""
        return int(2**self.num_numbers) - (3 if self.has_own_weights else 2)

    def at(self, point: Point) -> Candidate:
        """Returns the candidate at a point."""
        skipped = point[: 2 * self.num_layers]
        return self.with_own_weights(skipped) if point[2 * self.num_layers :] == (1,) else sharing(skipped)

    def point(self, candidate: Candidate) -> Point:
        """Returns the point of a candidate, whichever parts have own weights."""
        return (*candidate.skipped, int(candidate.has_own_weights)) if self.has_own_weights else candidate.skipped

    def with_own_weights(self, skipped: Bits) -> Candidate:
        """Returns the candidate whose kept parts have int4 weights, the largest first, as far as they fit."""
        skip = skip_of(skipped)
        return candidate_of(skip, self.num_layers, fitting_parts(self.sizes, skip, self.room))

    def of_each_kind(self, sets: Iterable[Bits]) -> list[Candidate]:
        """Returns the candidates that skip these sets, without and, where they fit, with own weights."""
        chosen: list[Candidate] = []
        for skipped in sets:
            chosen += [sharing(skipped), *([self.with_own_weights(skipped)] if self.has_own_weights else [])]
        return list(dict.fromkeys(chosen))


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


def skips_some(bits: Sequence[int]) -> bool:
    """Returns whether at least one sublayer is skipped and at least one is kept."""
    return 0 < sum(bits) < len(bits)
