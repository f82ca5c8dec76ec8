"""Texts of others reach terminals and logs on one line, without what these would interpret."""

from __future__ import annotations

import json

import pytest

from ssruntime.text.printable import printable, printable_json

UNSAFE = ["a\x1b[31mb", "a\nb\r\tb", "a\x9b31mb", "a\u202eb", "a\ud800b", "a\0b", "a\u2028b", "a\u00a0b"]


@pytest.mark.parametrize("text", UNSAFE)
def test_what_is_not_printable_becomes_a_space(text: str) -> None:
    found = printable(text)
    assert found.isprintable()
    assert found.startswith("a ")
    found.encode()


def test_a_limit() -> None:
    assert printable("ä" * 10, 10) == "ä" * 10
    assert printable("ä" * 11, 10) == "ä" * 7 + "..."
    assert printable("\n" * 5 + "ab", 10) == "ab"
    assert printable(" é  日本 ") == "é 日本"


@pytest.mark.parametrize("text", UNSAFE)
def test_json_loses_nothing(text: str) -> None:
    line = printable_json({text: text, "é": "日本"})
    assert line.isprintable()
    assert "日本" in line
    assert json.loads(line) == {text: text, "é": "日本"}
