"""Stop strings over incremental text: found wherever token boundaries fall, and never shown in part."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Holds back what may be the beginning of a stop string until it is clear."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Takes a piece of text; returns what may be shown. Sets `stopped` when a stop string is complete."""
        if self.stopped:
            return ""
        self._held += piece
        # The stop that is complete first ends the text, so that the result does not depend on how the text comes in pieces.
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        cut = len(self._held) - self._ambiguous()
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """Returns what was held back, as no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _ambiguous(self) -> int:
        """Returns the length of the longest end of the held text that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
