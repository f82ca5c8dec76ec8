"""Writes `report.html`: one file that makes no network request and never runs text from data as code."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ssruntime.scratch import write_whole
from sstool.search.log.read import SearchLog, read_search
from sstool.search.log.records import REPORT
from sstool.search_report import summary
from sstool.search_report.sections import PageSection, sections
from sstool.search_report.style import plain_text

logger = logging.getLogger(__name__)

_TEMPLATE: Final = Path(__file__).with_name("page.html.jinja")
_STYLE: Final = Path(__file__).with_name("page.css")
_SCRIPT: Final = Path(__file__).with_name("page.js")


def write_report(folder: Path) -> Path:
    """Writes the report of the search in `folder`, replaces an old one in one step, and returns its path.

    Raises:
        RecipeError: if the folder holds no search, or a damaged one.
        OSError: if the file cannot be written.
    """
    content = render(read_search(folder))
    path = folder / REPORT
    write_whole(path, content)
    return path


def try_report(folder: Path) -> None:
    """Writes the page of a search; if that fails, it only warns, because the search itself has succeeded."""
    try:
        write_report(folder)
    except Exception as err:  # noqa: BLE001 - whatever happens while plots are drawn
        logger.warning("the report of the search could not be made: %s; to try again: sstool report", " ".join(str(err).split()))


def render(log: SearchLog) -> bytes:
    """Returns the page of a search, UTF-8."""
    parts = sections(log)
    plotly = _script(get_plotlyjs())
    draw = _script(_SCRIPT.read_text(encoding="utf-8"))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=_clean
    )
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        policy=_policy(plotly, draw),
        style=Markup(_STYLE.read_text(encoding="utf-8")),  # a file of this package, not data
        plotly=plotly,
        draw=draw,
        figures=_figures(parts),
        model=log.header.model,
        verdict=summary.verdict(log),
        remark=summary.remark(log),
        tiles=summary.tiles(log),
        details=summary.details(log),
        sections=parts,
        rows=summary.best_rows(log),
        failures=summary.failures(log),
    )
    return page.encode("utf-8")


def _clean(value: object) -> object:
    return plain_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _script(source: str) -> Markup:
    """Returns JavaScript, plotly's or a file of this package, as the content of a `script` element."""
    # The browser turns every line break into a line feed before it compares the hash of the policy.
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    assert "</script" not in source.lower()
    assert "<!--" not in source
    return Markup(source)  # from files of packages, never from data


def _policy(*scripts: str) -> str:
    """Returns a content security policy that forbids all requests, and all scripts except these."""
    digests = (base64.b64encode(hashlib.sha256(s.encode("utf-8")).digest()).decode("ascii") for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    # Plotly adds style rules to the page at run time, and the icon is a `data:` address.
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"


def _figures(parts: list[PageSection]) -> Markup:
    """Returns the figures as JSON by the ids of their `div`s; no text in it can end the `script` element."""
    figures = {plot.id: json.loads(plot.figure.to_json()) for part in parts for plot in part.plots}
    text = json.dumps(figures, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # escaped in this line
