"""The front page's table of hardware is what the files of self-tests say."""

from __future__ import annotations

from pathlib import Path

from tests.measurements.hardware import FILES, table

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_table_is_made_from_self_tests() -> None:
    assert list(FILES.glob("*.json"))
    assert "\n".join(table()) in README.read_text(encoding="utf-8")
