"""Figures by sublayer: a skip set, leave-one-out sensitivity, and how often the best trials skip each one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from sstool.search.log.records import Sensitivity, Trial
from sstool.search_report import facts
from sstool.search_report.style import BLUE, GRID, INK, ORANGE, PALE, PALE_BLUE, PALE_ORANGE, new_figure

ATTENTION: Final = BLUE
MLP: Final = ORANGE
"""Colours of attention and MLP in every figure by sublayer."""
_KEPT: Final = GRID
_ROW: Final = 0.86
"""Height of a cell in a row of height 1."""
_MOST_LAYER_TICKS: Final = 12
_USUAL: Final = 0.9
"""The quantile up to which values count as usual."""
_FAR: Final = 4.0
"""Factor over the usual values above which a value is cut off, because it would flatten the other bars."""


def strip_figure(trial: Trial, num_layers: int) -> go.Figure:
    """Returns a figure of a draft: attention above MLP, one cell per layer, coloured unless shared."""
    figure = new_figure(height=150, x="layer", y="")
    skip, int4 = trial.skip, trial.int4
    rows = (("MLP", skip.mlp, int4.mlp, 0, (MLP, PALE_ORANGE)), ("attention", skip.attention, int4.attention, 1, (ATTENTION, PALE_BLUE)))
    for name, skipped, own, base, (colour, pale) in reversed(rows):
        figure.add_trace(_cells(f"{name} skipped", name, sorted(set(skipped)), base, colour, "skipped"))
        if own:
            figure.add_trace(_cells(f"{name} in int4", name, sorted(set(own)), base, pale, "kept, in int4"))
    for name, skipped, own, base, _ in rows:
        kept = sorted(set(range(num_layers)) - {*skipped, *own})
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
    """Returns a figure of leave-one-out sensitivity: 100 % minus the overlap of draft and target."""
    distances = [[100 * (1 - a) for a in kind] for kind in (sensitivity.attention, sensitivity.mlp)]
    return _pair_figure(*distances, top=_scale_end([*distances[0], *distances[1]]), hover="sensitivity %{y:.1f} %")


def frequency_figure(best: Sequence[Trial], num_layers: int) -> go.Figure:
    """Returns a figure of the share of the best trials that skip each sublayer."""
    attention, mlp = facts.skip_frequency(best, num_layers)
    return _pair_figure((100 * attention).tolist(), (100 * mlp).tolist(), top=104, hover="skipped by %{y:.0f} %")


def layer_ticks(num_layers: int) -> dict[str, Any]:
    """Returns plotly's settings for an axis of layers: whole numbers, few enough for a narrow window."""
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
    """Returns a figure with a row of attention above a row of MLPs, on the same scale.

    Two rows keep the bars wide enough in deep models.

    Args:
        attention: percentages of the attention sublayers, by layer.
        mlp: percentages of the MLP sublayers, by layer.
        top: upper end of both scales; a bar beyond it is labelled with its value.
        hover: plotly template of the text shown on a bar.
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
    """Returns the upper end of a scale that shows most values well, even if a few are far larger."""
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
