"""Incremental detokenization: text comes in pieces, without half characters, and with the right spaces.

A window of tokens is decoded with and without the newest tokens, and the difference is emitted. Decoders that
treat the start of a text specially (SentencePiece's leading space) thus see the tokens before. The window
starts at a complete character that was already emitted, because a byte-fallback decoder fails on a whole run
of byte tokens if the first one is in the middle of a character. `tokenizers.decoders.DecodeStream` works in
the same way, but it raises on byte tokens that are not valid UTF-8 ("Invalid prefix encountered", tokenizers
0.23), and sampled text may contain such tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenizers import Tokenizer

_REPLACEMENT: Final = "\ufffd"
_CONTEXT: Final = 6
"""Number of prompt tokens kept before the first generated one."""
_MAX_CHARACTER: Final = 4
"""Length of the longest UTF-8 character, in bytes."""
_MAX_PENDING: Final = 64
"""Most tokens that may wait for a character to become complete; more are invalid, and emitted as they are."""


class IncrementalText:
    """Turns the tokens that follow a prompt into text, one token at a time."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._window, self._known = self._last_of(prompt_ids)
        """The newest tokens, and how many of them have text that was emitted or belongs to the prompt."""
        self._known_text = self._decode(self._window[: self._known])

    def push(self, token: int) -> str:
        """Adds a token; returns the text that it completes, often an empty string."""
        self._window.append(token)
        text = self._decode(self._window)
        pending = len(self._window) - self._known
        if pending < _MAX_PENDING and (text.endswith(_REPLACEMENT) or text == self._known_text):
            return ""
        return self._emit(text)

    def finish(self) -> str:
        """Returns the text that is still held back, without an incomplete character at its end."""
        return self._emit(self._decode(self._window)).rstrip(_REPLACEMENT)

    def _emit(self, text: str) -> str:
        piece = self._piece(text)
        if piece:
            del self._window[: self._known]
        else:  # special tokens have no text and do not affect later text
            del self._window[self._known :]
        self._known = len(self._window)
        self._known_text = self._decode(self._window)
        return piece

    def _piece(self, text: str) -> str:
        """Returns the new part of the window's text."""
        known = self._known_text
        if text.startswith(known):
            return text[len(known) :]
        if text.count(_REPLACEMENT, 0, len(known)) > known.count(_REPLACEMENT):
            # An invalid byte token invalidates the characters before it that byte tokens wrote. They are
            # complete without it, and were shown.
            return self._decode(self._window[self._known :])
        return text[_common(text, known) :]

    def _last_of(self, prompt_ids: Sequence[int]) -> tuple[list[int], int]:
        """Returns the prompt's last tokens, and how many of them form complete characters.

        These are `_CONTEXT` tokens, or more if those begin within a character.
        """
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
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)


def _common(first: str, second: str) -> int:
    """Returns the length of the common prefix of two texts."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
