"""Every graph pass has a test file of its name, and a test names every error message of `sstool.graph`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

REPOSITORY = Path(__file__).resolve().parents[2]
GRAPH = REPOSITORY / "toolchain" / "sstool" / "graph"
TESTS = REPOSITORY / "tests"

NO_PASSES: Final = {"__init__", "constants"}
ERRORS: Final = {"UnsupportedModelError", "CheckpointError"}
DISTINCTIVE_WORDS: Final = 3
"""Number of consecutive words of an error message that a test must contain."""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text)


def runs(text: str) -> set[tuple[str, ...]]:
    """Returns all groups of `DISTINCTIVE_WORDS` consecutive words of a text."""
    found = words(text)
    return {tuple(found[at : at + DISTINCTIVE_WORDS]) for at in range(len(found) - DISTINCTIVE_WORDS + 1)}


def messages(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the line and the constant parts of the message of every error of `ERRORS` that a file raises."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in ERRORS:
            message = node.exc.args[0]
            parts = message.values if isinstance(message, ast.JoinedStr) else [message]
            yield node.lineno, [str(part.value) for part in parts if isinstance(part, ast.Constant)]


def strings_of_tests() -> list[str]:
    """Returns every string in the tests, except docstrings and the strings of this file."""
    found = []
    for path in TESTS.rglob("test_*.py"):
        if path != Path(__file__):
            tree = parse(path)
            alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            found += [str(node.value) for node in strings if id(node) not in alone]
    return found


def test_every_pass_has_a_test_file_of_its_name() -> None:
    passes = {path.stem for path in (GRAPH / "passes").glob("*.py")} - NO_PASSES
    tested = {path.stem.removeprefix("test_") for path in (TESTS / "toolchain" / "passes").glob("test_*.py")}
    assert len(passes) > 10
    assert tested == passes


def test_a_test_names_every_refusal() -> None:
    named = set[tuple[str, ...]]().union(*map(runs, strings_of_tests()))
    untested, num_messages = [], 0
    for path in sorted(GRAPH.rglob("*.py")):
        for line, parts in messages(path):
            own = set[tuple[str, ...]]().union(*map(runs, parts))
            num_messages += bool(own)
            if own and not own & named:
                untested.append(f"{path.relative_to(REPOSITORY)}:{line}: {' ... '.join(parts)}")
    assert num_messages > 10
    assert not untested
