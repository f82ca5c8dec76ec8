"""The look of all figures: one template, and a colour and a marker for each source of trials."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import plotly.graph_objects as go

INK: Final = "#1d2733"
MUTED: Final = "#5f6b7a"
GRID: Final = "#e3e7ec"
PALE: Final = "#ccd3db"
# The palette of Okabe and Ito, whose colours differ under every common kind of colour blindness.
BLUE: Final = "#0072b2"
ORANGE: Final = "#e69f00"
GREEN: Final = "#009e73"
VERMILION: Final = "#d55e00"
PURPLE: Final = "#cc79a7"
SKY: Final = "#56b4e9"
PALE_BLUE: Final = "#b9d7ea"
PALE_ORANGE: Final = "#f8e2b3"

FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TIMES: Final = "\u00a0\u00d7"
"""The unit after a speed-up; the space does not break."""
CONTEXT_SHADES: Final = (SKY, BLUE, INK)
"""Colours by context length, shortest first."""
_LONGEST_LABEL: Final = 60
_STEERING: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
"""Characters that change the direction of the text around them."""


@dataclass(frozen=True, kw_only=True)
class SourceStyle:
    """How the trials of one source are drawn.

    Attributes:
        title: the source's name in legends.
        colour: colour of its markers.
        symbol: plotly's name of the marker; with the suffix `-open` only its outline is drawn.
    """

    title: str
    colour: str
    symbol: str


SOURCES: Final = {
    "recipe": SourceStyle(title="recipe", colour=SKY, symbol="star"),
    "earlier": SourceStyle(title="earlier search", colour=INK, symbol="pentagon"),
    "leave-one-out": SourceStyle(title="leave-one-out order", colour=ORANGE, symbol="triangle-up"),
    "block": SourceStyle(title="contiguous block", colour=GREEN, symbol="square"),
    "every-other": SourceStyle(title="every other layer", colour=PURPLE, symbol="diamond"),
    "dynamic-programme": SourceStyle(title="dynamic programming", colour=VERMILION, symbol="triangle-down"),
    "variant": SourceStyle(title="given set, other weights", colour=SKY, symbol="star"),
    "whole": SourceStyle(title="whole model in int4", colour=INK, symbol="hexagon"),
    "random": SourceStyle(title="random", colour="#8c96a3", symbol="hexagon"),
    "ax": SourceStyle(title="Ax", colour=BLUE, symbol="circle"),
}
"""Styles by source, in the order of legends."""
_TEXT_STYLES: Final = {"sampled": (BLUE, "circle"), "greedy": (ORANGE, "square")}
_OTHER_TEXTS: Final = ((GREEN, "diamond"), (VERMILION, "triangle-up"), (PURPLE, "triangle-down"))


def source_style(source: str) -> SourceStyle:
    """Returns the style of a source; unknown sources share one colour and marker."""
    return SOURCES.get(source, SourceStyle(title=label(source), colour=MUTED, symbol="cross"))


def text_styles(kinds: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns a colour and a marker for each kind of text."""
    others = [k for k in kinds if k not in _TEXT_STYLES]
    return {k: _TEXT_STYLES.get(k) or _OTHER_TEXTS[others.index(k) % len(_OTHER_TEXTS)] for k in kinds}


def plain_text(text: str) -> str:
    """Returns text with U+FFFD for each character that HTML forbids or that changes the text's direction."""
    return "".join("\ufffd" if _is_unfit(c) else c for c in text)


def label(text: str) -> str:
    """Returns text from data for use in a figure: at most 60 characters, with markup escaped."""
    text = " ".join(plain_text(text).split())
    shortened = text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"
    # Plotly decodes the entities of &, < and >, and shows quotes unchanged.
    return html.escape(shortened, quote=False)


def new_figure(*, height: int, x: str, y: str) -> go.Figure:
    """Returns an empty figure with the common template, as wide as its `div` in the page.

    Args:
        height: height in pixels.
        x: title of the x axis, with its unit.
        y: title of the y axis, with its unit.
    """
    return go.Figure(
        layout=go.Layout(
            template=_TEMPLATE,
            height=height,
            xaxis={"title": {"text": x}},
            yaxis={"title": {"text": y}},
        )
    )


def level_line(figure: go.Figure, ends: tuple[float, float], y: float, name: str, *, dash: str, colour: str = MUTED) -> None:
    """Adds a horizontal line with a legend entry; a label in the plot would hide points in a narrow window.

    Args:
        figure: the figure to draw in.
        ends: x of both ends.
        y: height of the line.
        name: name in the legend.
        dash: plotly's name of the dash pattern.
        colour: colour of the line.
    """
    line = {"color": colour, "width": 1.6, "dash": dash}
    figure.add_trace(go.Scatter(x=list(ends), y=[y, y], mode="lines", name=name, line=line, hoverinfo="skip"))


def _is_unfit(character: str) -> bool:
    code = ord(character)
    if code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF:
        return True
    return character in _STEERING or (unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n")


def _axis() -> dict[str, Any]:
    return {
        "automargin": True,
        "gridcolor": GRID,
        "linecolor": PALE,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": PALE,
        "ticklen": 4,
        "title": {"font": {"size": 13, "color": MUTED}, "standoff": 10},
    }


_TEMPLATE: Final = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "margin": {"l": 12, "r": 12, "t": 14, "b": 12, "pad": 0},
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": PALE, "font": {"family": FONT, "size": 12, "color": INK}, "align": "left"},
        # The page has its own legends (see `key.py`).
        "showlegend": False,
        "hovermode": "closest",
        "xaxis": _axis(),
        "yaxis": _axis(),
        "bargap": 0.15,
    }
)
