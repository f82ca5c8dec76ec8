"""The bytes of single tokens, which need not be whole characters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

_PRINTABLE: Final = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
"""Bytes that byte-level vocabularies write as the character of the same number (GPT-2's alphabet)."""


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
        kinds = set(_decoders(json.loads(tokenizer.to_str()).get("decoder")))
        self._alphabet = _byte_alphabet() if "ByteLevel" in kinds else {}
        self._has_byte_tokens = "ByteFallback" in kinds
        self._added = {token: named.content for token, named in tokenizer.get_added_tokens_decoder().items()}

    def of(self, token: int) -> bytes:
        """Returns the bytes that a token adds to a text; for a special token, those of its name."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._bytes(token)
        return found

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


def _decoders(decoder: dict[str, Any] | None) -> Iterator[str]:
    """Yields the kinds of a decoder and of its parts, as `tokenizer.json` names them."""
    if decoder is not None:
        yield decoder["type"]
        for part in decoder.get("decoders", ()):
            yield from _decoders(part)
