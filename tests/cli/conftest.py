"""Fixtures of the command-line tests: run `sstool` in this process and read its output and exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sstool.cli.main import run


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The exit code and the output of one command."""

    code: int
    out: str
    err: str

    def lines(self) -> list[Any]:
        """Returns the objects of stdout, which is JSON Lines."""
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Outcome]


@pytest.fixture
def sstool(capfd: pytest.CaptureFixture[str]) -> Command:
    """Returns a function that runs `sstool` with the given arguments."""

    def invoke(*args: str | Path) -> Outcome:
        capfd.readouterr()
        code = run([str(a) for a in args])
        captured = capfd.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)

    return invoke


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    """Returns a file of two valid prompts, an empty one, and one longer than the tests' context of 64."""
    path = tmp_path / "prompts.jsonl"
    records = [
        {"id": "first", "prompt": "def area(radius):"},
        {"prompt": "import os"},
        {"id": "empty", "prompt": ""},
        {"id": "long", "prompt": "value = " * 100},
    ]
    path.write_text("\n".join(json.dumps(r) for r in records) + "\n", encoding="utf-8")
    return path
