"""Draws the README's pictures, each for light and dark pages: `python -m tests.measurements.pictures`.

`speed-*.svg` is a bar chart of `speed.json`, whose entries are what `sstool bench --json` printed, without
the single prompts. `flow-*.svg` shows the way from a checkpoint to decode rounds.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

FOLDER: Final = Path(__file__).parent
SPEED: Final = FOLDER / "speed.json"

mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sstool", "font.family": "sans-serif", "font.size": 11})


@dataclass(frozen=True)
class Theme:
    """Colours of one kind of page."""

    name: str
    text: str
    muted: str
    line: str
    box: str
    plain: str
    speculative: str


THEMES: Final = (
    Theme("light", "#1f2328", "#59636e", "#8c959f", "#f1f4f8", "#a3adb8", "#1a7f64"),
    Theme("dark", "#f0f6fc", "#9198a1", "#656c76", "#1c232c", "#656c76", "#3fb68b"),
)


def pictures() -> dict[str, bytes]:
    """Returns every picture's SVG by file name; the same input always gives the same bytes."""
    rows = json.loads(SPEED.read_text(encoding="utf-8"))
    drawn = {f"speed-{theme.name}.svg": _svg(_speed(rows, theme)) for theme in THEMES}
    return drawn | {f"flow-{theme.name}.svg": _svg(_flow(theme)) for theme in THEMES}


def _speed(rows: list[dict[str, Any]], theme: Theme) -> Figure:
    figure = Figure(figsize=(7.6, 0.62 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    modes = [{run["mode"]: run for run in row["bench"]["runs"]} for row in rows]
    plain = [mode["plain"]["tokens_per_second"]["median"] for mode in modes]
    fast = [mode["speculative"]["tokens_per_second"]["median"] for mode in modes]
    gap = 0.008 * max(fast)
    places = [float(-i) for i in range(len(rows))]
    axes.barh([p + 0.19 for p in places], plain, height=0.34, color=theme.plain, label="autoregressive")
    axes.barh([p - 0.19 for p in places], fast, height=0.34, color=theme.speculative, label="self-speculative")
    for place, slow, quick, mode in zip(places, plain, fast, modes, strict=True):
        ratio = mode["speculative"]["ratio_to_plain"]["median"]
        axes.text(slow + gap, place + 0.19, f"{slow:.0f}", va="center", color=theme.muted)
        axes.text(
            quick + gap,
            place - 0.19,
            f"{quick:.0f}  ({ratio:.2f}\N{MULTIPLICATION SIGN})",
            va="center",
            color=theme.text,
            fontweight="bold",
        )
    axes.set_yticks(places, [row["row"] for row in rows])
    axes.set_xlim(0, 1.22 * max(fast))
    axes.set_xlabel("tokens per second, one sequence", color=theme.muted)
    axes.tick_params(colors=theme.text, length=0)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_ticks([])
    figure.legend(loc="outside upper left", frameon=False, labelcolor=theme.text, ncols=2)
    return figure


_STEPS: Final = (
    ("checkpoint", ("a Hugging Face folder", "or hub id", "in safetensors")),
    ("export", ("build the graphs", "search what to skip", "prove the engines")),
    ("artifact", ("draft, verify and", "step graphs,", "shared weights")),
)
_ROUND: Final = (
    ("draft", ("k cheap steps with", "some sublayers skipped")),
    ("verify", ("k + 1 tokens in one", "pass of the full model")),
    ("emit", ("the accepted tokens", "and one of the model's own")),
)


def _flow(theme: Theme) -> Figure:
    figure = Figure(figsize=(7.6, 3.3))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 7.6)
    axes.set_ylim(0, 3.3)
    lefts = (0.1, 2.65, 5.2)
    for left, (title, lines) in zip(lefts, _STEPS, strict=True):
        _box(axes, theme, (left, 2.08), title, lines)
    for left, (title, lines) in zip(lefts, _ROUND, strict=True):
        _box(axes, theme, (left, 0.46), title, lines)
    for left in lefts[:-1]:
        _arrow(axes, theme, [(left + 2.3, 2.66), (left + 2.55, 2.66)])
        _arrow(axes, theme, [(left + 2.3, 0.91), (left + 2.55, 0.91)])
    first, last = lefts[0] + 1.15, lefts[-1] + 1.15
    _arrow(axes, theme, [(last, 2.08), (last, 1.72), (first, 1.72), (first, 1.37)])
    axes.text((first + last) / 2, 1.76, "the runtime loads the engines", ha="center", va="bottom", color=theme.muted, fontsize=10)
    _arrow(axes, theme, [(last, 0.46), (last, 0.14), (first, 0.14), (first, 0.46)])
    axes.text((first + last) / 2, 0.18, "next round", ha="center", va="bottom", color=theme.muted, fontsize=10)
    return figure


def _box(axes: Axes, theme: Theme, corner: tuple[float, float], title: str, lines: tuple[str, ...]) -> None:
    (x, y), height = corner, 0.41 + 0.25 * len(lines)
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch(corner, 2.3, height, boxstyle=style, facecolor=theme.box, edgecolor=theme.line))
    axes.text(x + 0.12, y + height - 0.2, title, color=theme.speculative, fontweight="bold", va="center")
    for index, line in enumerate(lines):
        axes.text(x + 0.12, y + height - 0.46 - 0.25 * index, line, color=theme.text, va="center", fontsize=10)


def _arrow(axes: Axes, theme: Theme, points: list[tuple[float, float]]) -> None:
    axes.plot(*zip(*points[:-1], strict=True), color=theme.line, linewidth=1.2)
    axes.annotate("", points[-1], points[-2], arrowprops={"arrowstyle": "-|>", "color": theme.line, "shrinkA": 0, "shrinkB": 0})


def _svg(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return content.getvalue()


def main() -> None:
    """Writes every picture beside this file."""
    for name, content in pictures().items():
        (FOLDER / name).write_bytes(content)


if __name__ == "__main__":
    main()
