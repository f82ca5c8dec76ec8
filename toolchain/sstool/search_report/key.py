"""The key of a figure as part of the page, where it wraps in a narrow window and never covers or squeezes the plot."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any, Final

import plotly.graph_objects as go

_DASHES: Final = {"dash": "5 3", "dot": "2 2"}
_CORNERS: Final = {
    # Corners on a circle of radius 1: how many, and the direction of the first one in degrees, 90 being up.
    "square": (4, 45, 1.15),
    "diamond": (4, 90, 1.15),
    "triangle-up": (3, 90, 1.2),
    "triangle-down": (3, 270, 1.2),
    "pentagon": (5, 90, 1.05),
    "hexagon": (6, 90, 1.05),
}
_RADIUS: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a key.

    Attributes:
        name: what the sign stands for, not escaped.
        stroke: colour of lines; `none` for none.
        fill: colour of the sign's inside; `none` for an outline.
        line: whether a line runs through the sign.
        dashes: of that line, as SVG takes them; empty for a solid one.
        path: the sign's outline around (0, 0), as SVG takes it; empty for none.
        hatched: whether the inside is hatched.
    """

    name: str
    stroke: str
    fill: str
    line: bool = False
    dashes: str = ""
    path: str = ""
    hatched: bool = False


def key_of(figure: go.Figure) -> list[Entry]:
    """Returns an entry for each named trace of a figure that is not kept out of its legend."""
    return [_entry(trace) for trace in figure.data if trace.showlegend is not False]


def _entry(trace: Any) -> Entry:
    # Names were escaped for plotly; the page escapes them itself.
    name = html.unescape(trace.name)
    if trace.type == "bar":
        hatched = bool(trace.marker.pattern.shape)
        return Entry(name=name, stroke="none", fill=trace.marker.color, path="M-6 -6H6V6H-6Z", hatched=hatched)
    symbols = trace.marker.symbol
    symbol = symbols if isinstance(symbols, str) else _filled(symbols)
    line = "lines" in trace.mode
    colour = trace.line.color if line else trace.marker.color
    if not line and (symbol.endswith("-open") or symbol in ("x-thin", "line-ns")):
        return Entry(name=name, stroke=colour, fill="none", path=_path(symbol.removesuffix("-open")))
    return Entry(
        name=name,
        stroke=colour if line else "none",
        fill=colour,
        line=line,
        dashes=_DASHES.get(trace.line.dash or "", ""),
        path=_path(symbol) if "markers" in trace.mode else "",
    )


def _filled(symbols: Any) -> str:
    """Returns the sign that a source's trials share, as of those that ran to their end."""
    return str(symbols[0]).removesuffix("-open") if symbols else "circle"


def _path(symbol: str) -> str:
    if symbol == "circle":
        return f"M-{_RADIUS} 0A{_RADIUS} {_RADIUS} 0 1 1 {_RADIUS} 0A{_RADIUS} {_RADIUS} 0 1 1 -{_RADIUS} 0Z"
    if symbol == "x-thin":
        return "M-5 -5L5 5M-5 5L5 -5"
    if symbol == "line-ns":
        return "M0 -7V7"
    if symbol == "cross":
        return "M-2 -5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z"
    if symbol == "star":
        return _polygon([(_RADIUS * (1.3 if i % 2 == 0 else 0.5), 90 + 36 * i) for i in range(10)])
    corners, first, scale = _CORNERS[symbol]
    return _polygon([(_RADIUS * scale, first + 360 * i / corners) for i in range(corners)])


def _polygon(points: list[tuple[float, float]]) -> str:
    corners = (f"{r * math.cos(math.radians(a)):.2f} {-r * math.sin(math.radians(a)):.2f}" for r, a in points)
    return f"M{'L'.join(corners)}Z"
