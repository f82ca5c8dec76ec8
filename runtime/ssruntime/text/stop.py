"""Stop strings in incremental text: found across token boundaries, and never shown in part.

A stop string counts if it occurs in the shown text, or in the text with all special tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence


class StopScanner:
    """Holds back text that may be the beginning of a stop string until later text decides it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self._is_shown: list[bool] = []
        """For each held character whether it belongs to the shown text."""
        self.stopped = False

    def push(self, piece: str, *, is_shown: bool = True) -> str:
        """Adds a piece of text; returns what may be shown. Sets `stopped` when a stop string is complete.

        Args:
            piece: text that follows the pieces before.
            is_shown: whether the piece belongs to the shown text; special tokens may be hidden.
        """
        if self.stopped:
            return ""
        self._held += piece
        self._is_shown += [is_shown] * len(piece)
        every = range(len(self._held))
        readings = [every] if all(self._is_shown) else [every, list(itertools.compress(every, self._is_shown))]
        # The stop string that is complete first ends the text, however the text is divided into pieces.
        found = [place for places in readings for place in self._find(places)]
        if found:
            self.stopped = True
            shown = self._release(min(found)[1])
            self.finish()
            return shown
        return self._release(min(self._first_ambiguous(places) for places in readings))

    def finish(self) -> str:
        """Returns the text that was held back. No text may follow."""
        return self._release(len(self._held))

    def _find(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """Returns the end and the beginning of each stop string in the held characters at some places."""
        text = "".join(self._held[i] for i in places)
        return [(places[at + len(stop) - 1] + 1, places[at]) for stop in self._stops if (at := text.find(stop)) >= 0]

    def _first_ambiguous(self, places: Sequence[int]) -> int:
        """Returns where the characters at some places end in the longest beginning of a stop string."""
        text = "".join(self._held[i] for i in places)
        sizes = (size for stop in self._stops for size in range(1, min(len(stop) - 1, len(text)) + 1) if text.endswith(stop[:size]))
        longest = max(sizes, default=0)
        return places[len(text) - longest] if longest else len(self._held)

    def _release(self, count: int) -> str:
        """Lets go of the first held characters; returns those that are shown."""
        shown = "".join(itertools.compress(self._held[:count], self._is_shown))
        self._held = self._held[count:]
        del self._is_shown[:count]
        return shown
