"""Finds the longest earlier occurrence of the end of a text, in constant time per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

_MOST_CANDIDATES: Final = 8
"""Most earlier occurrences that are compared."""
LONGEST: Final = 16
"""Length up to which matches are told apart."""


class Match(NamedTuple):
    """An earlier occurrence of the last tokens of a text.

    Attributes:
        length: number of tokens that match, 2 to `LONGEST`.
        source: position of the token that followed them.
    """

    length: int
    source: int


class NgramIndex:
    """The pairs of neighbouring tokens of one text, with the places where they occur.

    Its memory is bounded by the context: a number for each token, and one for each different pair.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], int] = {}
        """Position of the second token of a pair's last occurrence."""
        self._before: list[int] = []
        """For each position, that of the same pair's occurrence before; -1 if there is none."""

    def find(self, ids: Sequence[int]) -> Match | None:
        """Returns the longest match of the text's end, of equal ones the newest; None if there is none.

        Args:
            ids: the text; each call's text begins with that of the call before.
        """
        before, last = self._before, self._last
        for position in range(len(before), len(ids)):
            if position == 0:
                before.append(-1)
                continue
            pair = ids[position - 1], ids[position]
            before.append(last.get(pair, -1))
            last[pair] = position
        end = len(ids) - 1
        place, best, source = before[end] if before else -1, 0, -1
        for _ in range(_MOST_CANDIDATES):
            if place < 0 or best >= LONGEST:
                break
            length = 2
            while length < LONGEST and place >= length and ids[place - length] == ids[end - length]:
                length += 1
            if length > best:
                best, source = length, place + 1
            place = before[place]
        return Match(best, source) if best else None


def continuation(ids: Sequence[int], source: int, count: int) -> list[int]:
    """Returns the `count` tokens from a position on; past the end, the text goes on with these tokens."""
    found = list(ids[source : source + count])
    period = len(ids) - source
    while len(found) < count:
        found += found[-period:][: count - len(found)]
    return found
