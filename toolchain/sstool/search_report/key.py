"""Legends as part of the HTML page, so that they wrap in a narrow window and take no room from the plot.

Plotly's own legend takes its room from the plot: in a narrow window the cells of a skip set would become a
few pixels high.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any, Final

import plotly.graph_objects as go

_DASHES: Final = {"dash": "5 3", "dot": "2 2", "dashdot": "5 2 2 2"}
_CORNERS: Final = {
    # Number of corners, direction of the first one in degrees (90 is up), radius as a multiple of `_RADIUS`.
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
    """One entry of a legend.

    Attributes:
        name: the trace's name, not escaped.
        stroke: colour of the line and of an outline; `none` for no stroke.
        fill: colour inside the marker; `none` for an outline only.
        line: whether a horizontal line runs through the marker.
        dashes: SVG dash pattern of that line; empty for a solid line.
        path: SVG path of the marker's outline around (0, 0); empty for no marker.
        hatched: whether the marker is hatched.
    """

    name: str
    stroke: str
    fill: str
    line: bool = False
    dashes: str = ""
    path: str = ""
    hatched: bool = False


def key_of(figure: go.Figure) -> list[Entry]:
    """Returns a legend entry for each trace of a figure, except for traces with `showlegend` False."""
    return [_entry(trace) for trace in figure.data if trace.showlegend is not False]


def _entry(trace: Any) -> Entry:
    # Names are escaped for plotly, and the page's template escapes its text itself.
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
    """Returns the filled marker of a trace with filled and open ones; `circle` for a trace without points."""
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
