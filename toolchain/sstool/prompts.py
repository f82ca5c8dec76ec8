"""Files of prompts: JSON Lines of `{"id"?, "prompt"}`, read whole or refused with the number of the line that is wrong."""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from pathlib import Path

from ssruntime.errors import PromptError

_FORM = 'each line is an object like {"id": "a", "prompt": "def area(radius):"}'


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRecord:
    """One prompt of a file.

    Attributes:
        id: its name in results; its 0-based place among the file's prompts where the file names none.
        prompt: its text, which may be empty: a run refuses that prompt alone.
        index: its 0-based place among the file's prompts, from which its seed derives.
    """

    id: str
    prompt: str
    index: int


def read_prompts(path: Path) -> list[PromptRecord]:
    """Reads a file of prompts. Blank lines are skipped, keys other than `id` and `prompt` ignored.

    Raises:
        PromptError: if the file cannot be read, holds no prompt, or a line is not UTF-8, not JSON, or has no text under `prompt`.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise PromptError(f"cannot read prompts from {path}: {err.strerror or err}", f"name a JSON Lines file; {_FORM}") from err
    records: list[PromptRecord] = []
    # Only a line feed ends a line of JSON Lines: a JSON string may hold any other separator that str.splitlines knows.
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            records.append(_read_line(line, len(records), where=f"{path}, line {number}"))
    if not records:
        raise PromptError(f"{path} holds no prompts", _FORM)
    return records


def check_text(text: str, *, where: str) -> str:
    """Returns `text` if it can be written as UTF-8, as tokenizers need.

    Raises:
        PromptError: if it holds half of a surrogate pair, as an argument of invalid UTF-8 or a JSON escape may.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        raise PromptError(f"{where}: the prompt is not valid Unicode text at character {err.start}", "write it as UTF-8") from err
    return text


def _read_line(line: bytes, index: int, *, where: str) -> PromptRecord:
    try:
        data = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as err:
        raise PromptError(f"{where}: not UTF-8 at byte {err.start}", "save the file as UTF-8") from err
    except (ValueError, RecursionError) as err:
        raise PromptError(f"{where}: not JSON: {err}", _FORM) from err
    if not isinstance(data, dict):
        raise PromptError(f"{where}: expected an object, found {type(data).__name__}", _FORM)
    if "prompt" not in data:
        raise PromptError(f"{where}: key 'prompt' is missing", _FORM)
    if not isinstance(data["prompt"], str):
        raise PromptError(f"{where}: 'prompt' must be a text, found {type(data['prompt']).__name__}", _FORM)
    name = data.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise PromptError(f"{where}: 'id' must be a text or a whole number, found {type(name).__name__}", _FORM)
    return PromptRecord(id=str(index if name is None else name), prompt=check_text(data["prompt"], where=where), index=index)
