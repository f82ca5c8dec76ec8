"""The bytes of single tokens, which need not be whole characters."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any, Final

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

_PRINTABLE: Final = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
"""Bytes that byte-level vocabularies write as the character of the same number (GPT-2's alphabet)."""

_JOINED: Final = 4
"""Most characters that become one where a normalizer joins them (Unicode's NFC)."""
_ANY_TEXT: Final = 1024
"""Characters for each token that are taken to be enough where tokenizers drop text."""


def _byte_alphabet() -> dict[str, int]:
    """Returns the byte that each character of a byte-level vocabulary stands for."""
    others = [byte for byte in range(256) if byte not in _PRINTABLE]
    alphabet = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + index): byte for index, byte in enumerate(others)}
    assert alphabet.keys() == set(ByteLevel.alphabet())
    return alphabet


class TokenBytes:
    """Tells what single tokens stand for. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Takes the tokenizer, whose decoder must not change."""
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        described = json.loads(tokenizer.to_str())
        kinds = {part["type"] for part in _parts(described.get("decoder"))}
        self._alphabet = _byte_alphabet() if "ByteLevel" in kinds else {}
        has_every_byte = "ByteLevel" in kinds and all(tokenizer.token_to_id(letter) is not None for letter in self._alphabet)
        self._keeps_all = has_every_byte and _keeps_all(described)
        self._has_byte_tokens = "ByteFallback" in kinds
        self._added = {token: named.content for token, named in tokenizer.get_added_tokens_decoder().items()}

    def of(self, token: int) -> bytes:
        """Returns the bytes that a token adds to a text; for a special token, those of its name."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._bytes(token)
        return found

    def most_characters(self, tokens: int) -> int:
        """Returns a length in characters that no text of so many tokens exceeds.

        A tokenizer that keeps every byte has no token for more characters than its longest one has letters.
        Others join or drop characters before they look for tokens, without a limit if they drop spaces; there
        it is a length that only senseless texts exceed.
        """
        return tokens * (self._longest if self._keeps_all else max(_JOINED * self._longest, _ANY_TEXT))

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self._tokenizer.get_vocab()), default=1)

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:  # an id without a token: vocabularies are padded
            return b""
        if self._alphabet and all(character in self._alphabet for character in piece):
            return bytes(self._alphabet[character] for character in piece)
        if self._has_byte_tokens and len(piece) == len("<0x00>") and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        # Twice, because decoders drop the space at the beginning of a text.
        once, twice = (self._tokenizer.decode([token] * count, skip_special_tokens=False) for count in (1, 2))
        return (twice[len(once) :] if twice.startswith(once) else once).encode()


def _parts(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yields a step of `tokenizer.json`, and those that it consists of."""
    if step is not None:
        yield step
        for part in (*step.get("decoders", ()), *step.get("pretokenizers", ())):
            yield from _parts(part)


def _keeps_all(described: dict[str, Any]) -> bool:
    """Returns whether a tokenizer of this description drops and joins nothing before it looks for tokens."""
    before = [(part["type"], part.get("behavior")) for part in _parts(described.get("pre_tokenizer"))]
    return (
        described.get("normalizer") is None
        and all(kind in ("Sequence", "ByteLevel", "Digits", "Split") and behavior != "Removed" for kind, behavior in before)
        and not any(added["lstrip"] or added["rstrip"] for added in described["added_tokens"])
    )
