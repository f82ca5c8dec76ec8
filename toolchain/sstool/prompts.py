"""Prompt files: JSON Lines of `{"id"?, "prompt"}`; an error names the number of the wrong line."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

from ssruntime.errors import PromptError
from ssruntime.strict_reader import parse_json

_FORM = 'each line is an object like {"id": "a", "prompt": "def area(radius):"}'


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRecord:
    """One prompt of a file.

    Attributes:
        id: name of the prompt in results; its `index` as text if the file gives no name.
        prompt: text of the prompt. It may be empty: a run then refuses this prompt and continues with the
            others.
        index: 0-based position among the file's prompts. The prompt's seed derives from it.
    """

    id: str
    prompt: str
    index: int


def read_prompts(path: Path) -> list[PromptRecord]:
    """Returns the prompts of a file in order; ignores blank lines, and keys other than `id` and `prompt`.

    Raises:
        PromptError: if the file cannot be read or holds no prompt, or if a line is not UTF-8, is not JSON or
            has no string under `prompt`.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise PromptError(f"cannot read prompts from {path}: {err.strerror or err}", f"pass a JSON Lines file; {_FORM}") from err
    records: list[PromptRecord] = []
    # Only a line feed ends a line of JSON Lines: a string may contain the other separators of str.splitlines.
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            records.append(_read_line(line, len(records), where=f"{path}, line {number}"))
    if not records:
        raise PromptError(f"{path} holds no prompts", _FORM)
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
    if "prompt" not in data:
        raise PromptError(f"{where}: key 'prompt' is missing", _FORM)
    if not isinstance(data["prompt"], str):
        raise PromptError(f"{where}: 'prompt' must be a string, found {type(data['prompt']).__name__}", _FORM)
    name = data.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise PromptError(f"{where}: 'id' must be a string or an integer, found {type(name).__name__}", _FORM)
    return PromptRecord(id=str(index if name is None else name), prompt=check_text(data["prompt"], where=where), index=index)
