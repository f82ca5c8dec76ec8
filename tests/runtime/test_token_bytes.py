"""The bytes of the tokens of a text, joined, are the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ssruntime.text.token_bytes import TokenBytes
from tests.runtime.scripted import byte_fallback, byte_level, every_byte

MERGED = byte_level({"</s>": 0, "<s>": 1, "a": 2, "Ġ": 3, "Ã": 4, "©": 5, "aÃ": 6, "©b": 7, "ðŁĺĢ": 8}, ["</s>", "<s>"])


@pytest.mark.parametrize("tokenizer", [every_byte(), byte_fallback()], ids=["bytes", "fallback"])
def test_every_byte_has_a_token(tokenizer: Tokenizer) -> None:
    of = TokenBytes(tokenizer).of
    assert b"".join(of(byte + 2) for byte in range(256)) == bytes(range(256))


def test_merged_and_special_tokens() -> None:
    of = TokenBytes(MERGED).of
    assert [of(token) for token in range(9)] == [b"</s>", b"<s>", b"a", b" ", b"\xc3", b"\xa9", b"a\xc3", b"\xa9b", "😀".encode()]
    assert of(99) == b""


def test_a_space_at_the_beginning_stays() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2}, unk_token="s"))
    tokenizer.decoder = decoders.Metaspace()
    assert [TokenBytes(tokenizer).of(token) for token in range(3)] == [b" the", b" cat", b"s"]


@given(st.text(max_size=40))
def test_the_demo_s_tokens_spell_a_text(demo_model: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(demo_model / "tokenizer.json"))
    assert isinstance(tokenizer.pre_tokenizer, pre_tokenizers.PreTokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    of = TokenBytes(tokenizer).of
    assert b"".join(of(token) for token in ids).decode() == text


def test_a_text_of_more_characters_than_its_tokens_can_stand_for() -> None:
    assert TokenBytes(every_byte()).most_characters(10) == 10 * len("</s>")
    joins, drops, strips = every_byte(), every_byte(), every_byte()
    joins.normalizer = normalizers.NFC()
    drops.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    strips.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    for tokenizer in (joins, drops, strips, MERGED, byte_fallback()):  # MERGED has no tokens for most bytes
        assert TokenBytes(tokenizer).most_characters(10) == 10 * 1024


@given(st.text(max_size=40))
def test_no_text_exceeds_the_characters_of_its_tokens(demo_model: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(demo_model / "tokenizer.json"))
    assert len(text) <= TokenBytes(tokenizer).most_characters(len(tokenizer.encode(text, add_special_tokens=False).ids))
