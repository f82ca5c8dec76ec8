"""Prompts files: what is read, and the error for each kind of invalid file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ssruntime.errors import PromptError
from ssruntime.text.prompt import Chat
from sstool.prompts import STANDARD_INPUT, check_text, read_prompts


def written(folder: Path, data: bytes) -> Path:
    path = folder / "prompts.jsonl"
    path.write_bytes(data)
    return path


def test_an_id_is_the_file_s_own_or_the_index_of_the_prompt(tmp_path: Path) -> None:
    records = read_prompts(
        written(tmp_path, b'{"prompt": "a"}\n\n{"id": "b", "prompt": "b"}\n  \n{"id": 7, "prompt": "c"}\n{"prompt": ""}')
    )
    assert [(r.index, r.id, r.prompt) for r in records] == [(0, "0", "a"), (1, "b", "b"), (2, "7", "c"), (3, "3", "")]


def test_other_keys_are_ignored(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, b'{"task": 1, "prompt": "a"}'))[0].prompt == "a"


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    records = read_prompts(written(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n'))
    assert [r.prompt for r in records] == ["a", "b"]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, '{"prompt": "a\u2028b\u0085c"}\n'.encode()))[0].prompt == "a\u2028b\u0085c"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "holds no prompts"),
        (b"\n \n\n", "holds no prompts"),
        (b"\xef\xbb\xbf", "holds no prompts"),
        (b'{"prompt": "a"}\n{"prompt": "b"\n', "line 2: not JSON"),
        (b'{"prompt": "a"}\n\n\nnot json\n', "line 4: not JSON"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b'{"text": "a"}\n', "line 1: key 'prompt' is missing"),
        (b'{"prompt": "a", "messages": []}\n', "line 1: 'prompt' and 'messages' exclude each other"),
        (b'{"messages": [{"role": "user"}]}\n', "line 1: message 0 lacks a role or content"),
        (b'{"messages": "hi"}\n', "line 1: messages must be a list of objects"),
        (b'{"prompt": [1, "a"]}\n', "'prompt' must be a string or a list of token ids"),
        (b'{"prompt": "a"}\n{"prompt": 3}\n', "line 2: 'prompt' must be a string or a list of token ids, found int"),
        (b'{"prompt": null}\n', "'prompt' must be a string or a list of token ids, found NoneType"),
        (b'"a"\n', "expected an object, found str"),
        (b'[{"prompt": "a"}]\n', "expected an object, found list"),
        (b'{"id": [1], "prompt": "a"}\n', "'id' must be a string or an integer"),
        (b'{"id": true, "prompt": "a"}\n', "'id' must be a string or an integer"),
        (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "line 2: not UTF-8 at byte 12"),
        ('{"prompt": "a"}'.encode("utf-16"), "line 1: not UTF-8"),
        (b'{"prompt": "\\ud800"}\n', "not valid Unicode text"),
    ],
)  # fmt: skip
def test_an_invalid_file_is_refused_with_the_line_number(tmp_path: Path, data: bytes, expected: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(PromptError) as caught:
        read_prompts(path)
    assert expected in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PromptError, match="cannot read prompts"):
        read_prompts(tmp_path / name)


def test_text_with_half_a_surrogate_pair_is_refused() -> None:
    assert check_text("naïve 🙂", where="--prompt") == "naïve 🙂"
    with pytest.raises(PromptError, match="--prompt: the prompt is not valid Unicode"):
        check_text("a\udcff", where="--prompt")


def test_a_line_may_hold_token_ids_or_a_chat(tmp_path: Path) -> None:
    data = (
        b'{"prompt": [5, 6]}\n{"id": "c", "messages": [{"role": "user", "content": "a"}], "tools": [{"name": "t"}], "variables": {"x": 1}}'
    )
    ids, chat = (record.prompt for record in read_prompts(written(tmp_path, data)))
    assert ids == (5, 6)
    assert chat == Chat(messages=[{"role": "user", "content": "a"}], tools=[{"name": "t"}], variables={"x": 1})


@pytest.mark.parametrize(("data", "expected"), [(b'{"prompt": "a"}\n', None), (b"", "standard input holds no prompts")])
def test_a_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes, expected: str | None) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    if expected is None:
        assert [record.prompt for record in read_prompts(STANDARD_INPUT)] == ["a"]
    else:
        with pytest.raises(PromptError, match=expected):
            read_prompts(STANDARD_INPUT)
