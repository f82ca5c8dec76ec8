"""The text of one request: tokens in, text that may be shown out, and whether a stop string ended it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from ssruntime.text.incremental import IncrementalText
from ssruntime.text.stop import StopScanner


class OutputText:
    """Collects committed tokens. Without stop strings the work waits until the text is asked for, off the decode loop."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stops: Sequence[str]) -> None:
        self._pieces = IncrementalText(tokenizer, prompt_ids)
        self._scanner = StopScanner(stops)
        self._scans = bool(stops)
        self._waiting: list[int] = []
        self._shown: list[str] = []

    def push(self, token: int) -> bool:
        """Takes a token; returns whether a stop string is complete with it."""
        self._waiting.append(token)
        if self._scans:
            self._process()
        return self._scanner.stopped

    def take(self) -> str:
        """Returns the text that may be shown and was not taken yet."""
        self._process()
        text = "".join(self._shown)
        self._shown.clear()
        return text

    def finish(self) -> str:
        """Returns the rest of the text, as no more tokens come."""
        self._process()
        if not self._scanner.stopped:
            self._shown.append(self._scanner.push(self._pieces.finish()))
            self._shown.append(self._scanner.finish())
        return self.take()

    def _process(self) -> None:
        for token in self._waiting:
            self._shown.append(self._scanner.push(self._pieces.push(token)))
        self._waiting.clear()
