"""Prompt files: JSON Lines, each a text, token ids or a chat; an error names the wrong line's number."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ssruntime.errors import PromptError
from ssruntime.strict_reader import parse_json
from ssruntime.text.prompt import Chat

STANDARD_INPUT: Final = Path("-")
"""Stands for standard input where a prompt file is expected."""
BUILT_IN_CALIBRATION: Final = Path(__file__).with_name("calibration.jsonl")
"""The prompts that sstool ships, for calibrations that name no others: 64 prompts of many kinds.

They are ordered so that each half (chosen on, held out), and any part of a half, is a mix of kinds too."""
_FORM = 'each line is an object like {"id": "a", "prompt": "def area(radius):"} or {"messages": [{"role": "user", "content": "Hi"}]}'
_CHAT_KEYS: Final = ("tools", "documents", "variables")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRecord:
    """One prompt of a file.

    Attributes:
        id: name of the prompt in results; its `index` as text if the file gives no name.
        prompt: text, token ids or chat. It may be empty: a run then refuses this prompt and continues with
            the others.
        index: 0-based position among the file's prompts. The prompt's seed derives from it.
    """

    id: str
    prompt: str | tuple[int, ...] | Chat
    index: int


def read_prompts(path: Path) -> list[PromptRecord]:
    """Returns the prompts of a file in order; ignores blank lines and unknown keys.

    A line holds `prompt`, a text or a list of token ids, or `messages` and what else a `Chat` holds.

    Args:
        path: file, or `STANDARD_INPUT`.

    Raises:
        PromptError: if the file cannot be read or holds no prompt, or if a line is not UTF-8, is not JSON or
            holds no prompt.
    """
    name = "standard input" if path == STANDARD_INPUT else str(path)
    try:
        data = sys.stdin.buffer.read() if path == STANDARD_INPUT else path.read_bytes()
    except OSError as err:
        raise PromptError(f"cannot read prompts from {name}: {err.strerror or err}", f"pass a JSON Lines file; {_FORM}") from err
    records: list[PromptRecord] = []
    # Only a line feed ends a line of JSON Lines: a string may contain the other separators of str.splitlines.
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            records.append(_read_line(line, len(records), where=f"{name}, line {number}"))
    if not records:
        raise PromptError(f"{name} holds no prompts", _FORM)
    return records


def check_text(text: str, *, where: str) -> str:
    """Returns `text` unchanged if it can be encoded as UTF-8, which tokenizers require.

    Raises:
        PromptError: if it contains a lone surrogate. A command-line argument that is not UTF-8, or a JSON
            escape, can produce one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        raise PromptError(
            f"{where}: the prompt is not valid Unicode text at character {err.start}", "replace the invalid character"
        ) from err
    return text


def _read_line(line: bytes, index: int, *, where: str) -> PromptRecord:
    try:
        data = parse_json(line)
    except UnicodeDecodeError as err:
        raise PromptError(f"{where}: not UTF-8 at byte {err.start}", "save the file as UTF-8") from err
    except ValueError as err:
        raise PromptError(f"{where}: not JSON: {err}", _FORM) from err
    if not isinstance(data, dict):
        raise PromptError(f"{where}: expected an object, found {type(data).__name__}", _FORM)
    name = data.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise PromptError(f"{where}: 'id' must be a string or an integer, found {type(name).__name__}", _FORM)
    return PromptRecord(id=str(index if name is None else name), prompt=_prompt(data, where), index=index)


def _prompt(data: Mapping[str, object], where: str) -> str | tuple[int, ...] | Chat:
    if ("prompt" in data) == ("messages" in data):
        raise PromptError(
            f"{where}: " + ("'prompt' and 'messages' exclude each other" if "prompt" in data else "key 'prompt' is missing"), _FORM
        )
    if "messages" in data:
        try:
            given = {key: data[key] for key in _CHAT_KEYS if data.get(key) is not None}
            return Chat(messages=data["messages"], **given)  # type: ignore[arg-type]  # it checks its values
        except PromptError as err:
            raise PromptError(f"{where}: {err.message}", err.hint) from err
    prompt = data["prompt"]
    if isinstance(prompt, str):
        return check_text(prompt, where=where)
    if isinstance(prompt, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt):
        return tuple(prompt)
    raise PromptError(f"{where}: 'prompt' must be a string or a list of token ids, found {type(prompt).__name__}", _FORM)
