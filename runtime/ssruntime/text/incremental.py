"""Tokens to text piece by piece: never half a character, and spaces as they stand in the middle of a text.

A window of tokens is decoded with and without the newest ones and the difference is emitted, so decoders that treat the start of a
text specially (SentencePiece's leading space) see the prompt before it. The window starts at a whole character that was shown: a
byte-fallback decoder gives up on a whole run of byte tokens if its first one is the middle of a character.
`tokenizers.decoders.DecodeStream` works alike, but raises on byte tokens that form no UTF-8 ("Invalid prefix encountered", 0.23),
which sampled text does contain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenizers import Tokenizer

_REPLACEMENT: Final = "\ufffd"
_CONTEXT: Final = 6
"""Prompt tokens kept before the first new one."""
_MAX_CHARACTER: Final = 4
"""Bytes of the longest UTF-8 character."""
_MAX_PENDING: Final = 64
"""Tokens that may wait for a character to become whole; past it they are garbage and are let go."""


class IncrementalText:
    """Turns the tokens that follow a prompt into text, as they come."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window, self._known = self._last_of(prompt_ids)
        """The newest tokens, and how many of them have text that was emitted or is the prompt's."""
        self._known_text = self._decode(self._window[: self._known])

    def push(self, token: int) -> str:
        """Takes a token; returns the text that it completes, often none."""
        self._window.append(token)
        text = self._decode(self._window)
        pending = len(self._window) - self._known
        if pending < _MAX_PENDING and (text.endswith(_REPLACEMENT) or text == self._known_text):
            return ""
        return self._emit(text)

    def finish(self) -> str:
        """Returns what is still held back, without a character that never became whole."""
        return self._emit(self._decode(self._window)).rstrip(_REPLACEMENT)

    def _emit(self, text: str) -> str:
        piece = text[len(self._known_text) :] if text.startswith(self._known_text) else text[_common(text, self._known_text) :]
        if piece:
            del self._window[: self._known]
        else:  # special tokens, which leave no trace in later text either
            del self._window[self._known :]
        self._known = len(self._window)
        self._known_text = self._decode(self._window)
        return piece

    def _last_of(self, prompt_ids: Sequence[int]) -> tuple[list[int], int]:
        """Returns the prompt's last tokens, more than a few where those begin within a character, and how many of them are whole text."""
        for size in range(_CONTEXT, _MAX_PENDING):
            window = list(prompt_ids[-size:])
            for known in range(len(window), max(0, len(window) - _MAX_CHARACTER), -1):
                text = self._decode(window[:known])
                is_whole = not text.startswith(_REPLACEMENT) and not text.endswith(_REPLACEMENT)
                if is_whole and (text or size >= len(prompt_ids)):
                    return window, known
        window = list(prompt_ids[-_CONTEXT:])
        return window, len(window)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _common(first: str, second: str) -> int:
    """Returns the length of the common start of two texts."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
