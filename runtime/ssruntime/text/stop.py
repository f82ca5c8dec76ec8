"""Stop strings in incremental text: found across token boundaries, and never shown in part."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Holds back text that may be the beginning of a stop string until later text decides it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Adds a piece of text; returns what may be shown. Sets `stopped` when a stop string is complete."""
        if self.stopped:
            return ""
        self._held += piece
        # The stop string that is complete first ends the text, however the text is divided into pieces.
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        cut = len(self._held) - self._ambiguous()
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """Returns the text that was held back. No text may follow."""
        shown, self._held = self._held, ""
        return shown

    def _ambiguous(self) -> int:
        """Returns the length of the longest suffix of the held text that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
