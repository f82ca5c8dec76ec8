"""The text of one request: takes tokens, returns the text that may be shown, and detects stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from ssruntime.text.incremental import IncrementalText
from ssruntime.text.stop import StopScanner


class OutputText:
    """Collects committed tokens. Without stop strings, detokenization waits until text is taken."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stops: Sequence[str]) -> None:
        self._pieces = IncrementalText(tokenizer, prompt_ids)
        self._scanner = StopScanner(stops)
        self._scans = bool(stops)
        self._waiting: list[int] = []
        self._shown: list[str] = []

    def push(self, token: int) -> bool:
        """Adds a token; returns whether a stop string is complete with it."""
        self._waiting.append(token)
        if self._scans:
            self._process()
        return self._scanner.stopped

    def take(self) -> str:
        """Returns the text that may be shown and has not been taken yet."""
        self._process()
        text = "".join(self._shown)
        self._shown.clear()
        return text

    def finish(self) -> str:
        """Returns the rest of the text, including text that was held back. No token may follow."""
        self._process()
        if not self._scanner.stopped:
            self._shown.append(self._scanner.push(self._pieces.finish()))
            self._shown.append(self._scanner.finish())
        return self.take()

    def _process(self) -> None:
        for token in self._waiting:
            self._shown.append(self._scanner.push(self._pieces.push(token)))
        self._waiting.clear()
