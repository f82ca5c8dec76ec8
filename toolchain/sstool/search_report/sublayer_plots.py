"""Figures by sublayer: what a draft skips, how much the model misses each, and what the best trials agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from sstool.search.log.records import Sensitivity, Trial
from sstool.search_report import facts
from sstool.search_report.style import BLUE, GRID, INK, ORANGE, PALE, new_figure

ATTENTION: Final = BLUE
MLP: Final = ORANGE
"""The kinds' colours in every figure by sublayer."""
_KEPT: Final = GRID
_ROW: Final = 0.86
"""Height of a cell within its row of height 1."""
_MOST_LAYER_TICKS: Final = 12
_USUAL: Final = 0.9
"""The part of the values that is usual; what is more than `_FAR` times above all of these would flatten them."""
_FAR: Final = 4.0


def strip_figure(trial: Trial, num_layers: int) -> go.Figure:
    """Draws a skip set: a row of attention above a row of MLPs, a cell a layer, filled where it is skipped."""
    figure = new_figure(height=150, x="layer", y="")
    rows = (("MLP", trial.skip.mlp, 0, MLP), ("attention", trial.skip.attention, 1, ATTENTION))
    for name, skipped, base, colour in reversed(rows):
        figure.add_trace(_cells(f"{name} skipped", name, sorted(set(skipped)), base, colour, "skipped"))
    for name, skipped, base, _ in rows:
        kept = sorted(set(range(num_layers)) - set(skipped))
        figure.add_trace(_cells("kept", name, kept, base, _KEPT, "kept", in_legend=base == 1))
    figure.update_layout(barmode="overlay", bargap=0)
    figure.update_xaxes(range=[-0.6, num_layers - 0.4], showgrid=False, ticks="", showline=False, **layer_ticks(num_layers))
    figure.update_yaxes(
        range=[-0.06, 1.94],
        tickvals=[_ROW / 2, 1 + _ROW / 2],
        ticktext=["MLP", "attention"],
        showgrid=False,
        ticks="",
        ticklabelstandoff=4,
        fixedrange=True,
    )
    return figure


def sensitivity_figure(sensitivity: Sensitivity) -> go.Figure:
    """Draws the part of the next token's probability that moves elsewhere with one sublayer left out: how much the model misses it."""
    lost = [[100 * (1 - a) for a in kind] for kind in (sensitivity.attention, sensitivity.mlp)]
    return _pair_figure(*lost, top=_scale_end([*lost[0], *lost[1]]), hover="%{y:.1f} % of what comes next is lost")


def frequency_figure(best: Sequence[Trial], num_layers: int) -> go.Figure:
    """Draws how many of the best trials skip each sublayer."""
    attention, mlp = facts.skip_frequency(best, num_layers)
    return _pair_figure((100 * attention).tolist(), (100 * mlp).tolist(), top=104, hover="skipped by %{y:.0f} %")


def layer_ticks(num_layers: int) -> dict[str, Any]:
    """Returns settings for an axis of layers: whole numbers from 0, as many as have room in a narrow window."""
    steps = (1, 2, 4, 5, 10, 20, 50, 100)
    return {"tickangle": 0, "tick0": 0, "dtick": next((s for s in steps if num_layers / s <= _MOST_LAYER_TICKS), steps[-1])}


def _cells(name: str, kind: str, layers: Sequence[int], base: int, colour: str, state: str, *, in_legend: bool = True) -> go.Bar:
    return go.Bar(
        x=list(layers),
        y=[_ROW] * len(layers),
        base=base,
        width=0.88,
        name=name,
        showlegend=in_legend,
        marker={"color": colour, "line": {"width": 0}},
        hovertemplate=f"{kind} of layer %{{x}}: {state}<extra></extra>",
    )


def _pair_figure(attention: Sequence[float], mlp: Sequence[float], *, top: float, hover: str) -> go.Figure:
    """Returns a row of attention above a row of MLPs, on one scale: a bar a layer stays wide enough in the deepest model.

    Args:
        attention: percent, by layer.
        mlp: likewise.
        top: end of both scales.
        hover: what to say of a bar, as plotly takes it.
    """
    figure = new_figure(height=340, x="", y="")
    figure.set_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    for row, (name, values, colour) in enumerate((("attention", attention, ATTENTION), ("MLP", mlp, MLP)), start=1):
        bar = go.Bar(
            x=list(range(len(values))),
            y=list(values),
            name=name,
            marker={"color": colour},
            hovertemplate=f"{name} of layer %{{x}}: {hover}<extra></extra>",
        )
        figure.add_trace(bar, row=row, col=1)
        figure.update_yaxes(title={"text": f"{name} (%)"}, range=[0, top], nticks=5, row=row, col=1)
        for layer, value in enumerate(values):
            if value > top:
                figure.add_annotation(_beyond(layer, value, top), row=row, col=1)
    figure.update_layout(bargap=0.2)
    figure.update_xaxes(range=[-0.6, len(attention) - 0.4], showgrid=False, **layer_ticks(len(attention)))
    figure.update_xaxes(title={"text": "layer"}, row=2, col=1)
    return figure


def _scale_end(values: Sequence[float]) -> float:
    """Returns the end of a scale on which most values can be told apart, though a few be far above them."""
    highest, usual = max(1.0, *values), max(1.0, float(np.quantile(values, _USUAL)))
    return 1.05 * highest if highest < _FAR * usual else _FAR / 2 * usual


def _beyond(layer: int, value: float, top: float) -> dict[str, Any]:
    return {
        "x": layer,
        "y": top,
        "text": f"{value:.0f}",
        "showarrow": False,
        "yanchor": "top",
        "font": {"size": 11, "color": INK},
        "bgcolor": "#ffffff",
        "bordercolor": PALE,
        "borderpad": 1,
    }
