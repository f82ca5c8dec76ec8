"""The README's pictures show the committed figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.measurements.pictures import FOLDER, SPEED, pictures

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_pictures_are_those_of_the_figures() -> None:
    for name, content in pictures().items():
        assert (FOLDER / name).read_bytes() == content, f"{name}: run `python -m tests.measurements.pictures`"


def test_the_table_on_the_front_page_shows_the_same_figures() -> None:
    text = README.read_text(encoding="utf-8")
    for row in json.loads(SPEED.read_text(encoding="utf-8")):
        modes = {run["mode"]: run for run in row["bench"]["runs"]}
        plain, fast = modes["plain"], modes["speculative"]
        low, high = fast["ratio_interval_95"]
        shown = [
            f"{plain['tokens_per_second']['median']:.0f}",
            f"{fast['tokens_per_second']['median']:.0f}",
            f"**{fast['ratio_to_plain']['median']:.2f}** ({low:.2f} to {high:.2f})",
            f"{fast['acceptance_rate']:.2f}",
            f"{fast['identical']['yes']} of {fast['prompts']}",
        ]
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['row']}"))
        assert re.split(r"\s*\|\s*", line.strip("| "))[1:] == shown, row["row"]
