"""Writes the report of a self-test as JSON, and as one page that needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined

from ssruntime.errors import ArtifactError
from ssruntime.scratch import write_whole
from sstool.selftest.rows import SelfTestReport

_TEMPLATE: Final = Path(__file__).with_name("page.html.jinja")


def write_pages(report: SelfTestReport, folder: Path) -> None:
    """Writes `selftest.json` and `selftest.html` to a folder, which is created if it is missing.

    Raises:
        ArtifactError: if they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "selftest.json", (json.dumps(report.to_json(), indent=1) + "\n").encode())
        write_whole(folder / "selftest.html", render(report).encode())
    except OSError as err:
        raise ArtifactError(f"{folder} cannot be written: {err.strerror or err}", "choose another folder for --out") from err


def render(report: SelfTestReport) -> str:
    """Returns the page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    targets = list(dict.fromkeys(row.target for row in report.rows))
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(report=report, targets=targets)
