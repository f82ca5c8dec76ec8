"""Figures of all trials: progress, cost ratio and acceptance rate, and measured against modelled speed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from sstool.search.log.read import SearchLog
from sstool.search.log.records import FAILED, STOPPED, LatencyRow, Trial
from sstool.search_report import facts
from sstool.search_report.style import INK, MUTED, PALE, SOURCES, TIMES, SourceStyle, label, level_line, new_figure, source_style

_LEVELS: Final = (0.8, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
_MOST_LINES: Final = 8
_LINE_POINTS: Final = 160
_LABEL_ROOM: Final = (0.13, 0.05)
"""Fractions of the figure's width and height; of two lines whose ends are closer, only one gets a label."""


def progress_figure(log: SearchLog) -> go.Figure:
    """Returns a figure of the modelled speed-up by trial, with the best so far and the best warm start."""
    figure = new_figure(height=420, x="trial", y="modelled speed-up (\u00d7)")
    scored = [t for t in log.trials if t.speedup is not None]
    ends = _scale_by_trial(figure, log)
    level_line(figure, ends, 1.0, "autoregressive decoding", dash="dot")
    warm = facts.best_warm_start(log)
    if warm is not None and warm.speedup is not None:
        level_line(
            figure, ends, warm.speedup, f"best warm start, {warm.speedup:.2f}{TIMES}", dash="dash", colour=source_style(warm.source).colour
        )
    curve = facts.best_so_far(log)
    if curve:
        figure.add_trace(
            go.Scatter(
                x=[index for index, _ in curve],
                y=[best for _, best in curve],
                mode="lines",
                name=f"best so far, {curve[-1][1]:.2f}{TIMES}",
                line={"color": INK, "width": 1.8, "shape": "hv"},
                hovertemplate="best up to trial %{x}: %{y:.3f} \u00d7<extra></extra>",
            )
        )
    _add_trials(figure, log, scored, {t.index: (float(t.index), facts.speedup_of(t)) for t in scored})
    # Failed trials have no speed-up. They are drawn below all others, where they can be counted.
    failures = facts.failed(log)
    if failures:
        bottom = min([1.0, *(facts.speedup_of(t) for t in scored)]) - 0.06
        _add_failed(figure, log, failures, {t.index: (float(t.index), bottom) for t in failures})
    return figure


def trade_figure(log: SearchLog) -> go.Figure | None:
    """Returns a figure of cost ratio and acceptance rate, with lines of equal speed-up.

    It is None if no trial has both values.
    """
    places: dict[int, tuple[float, float]] = {}
    for trial in log.trials:
        rate = facts.acceptance_rate(trial, log.header.weights)
        if rate is not None and trial.cost_ratio is not None:
            places[trial.index] = (trial.cost_ratio, 100 * rate)
    if not places:
        return None
    figure = new_figure(height=520, x="cost ratio c: draft step / autoregressive step", y="acceptance rate: accepted / proposed (%)")
    xs, ys = [x for x, _ in places.values()], [y for _, y in places.values()]
    x_range = [max(0.0, min(xs) - 0.06), max(max(xs) + 0.06, min(xs) + 0.2)]
    y_range = [max(0.0, min(ys) - 8.0), min(102.0, max(max(ys) + 8.0, min(ys) + 20.0))]
    row = iso_row(log)
    if row is not None:
        _add_iso_lines(figure, row, x_range, y_range)
    drawn = [t for t in log.trials if t.index in places]
    _add_trials(figure, log, [t for t in drawn if t.status != FAILED], places)
    failures = [t for t in drawn if t.status == FAILED]
    if failures:
        _add_failed(figure, log, failures, places)
    _ring(figure, log, places)
    figure.update_xaxes(range=x_range)
    figure.update_yaxes(range=y_range)
    return figure


def clock_figure(log: SearchLog) -> go.Figure | None:
    """Returns a figure of measured / modelled speed by trial; None if no trial was timed."""
    places = {t.index: (float(t.index), t.timed.ratio) for t in log.trials if t.timed is not None}
    if not places:
        return None
    figure = new_figure(height=380, x="trial", y="measured / modelled speed")
    level_line(figure, _scale_by_trial(figure, log), 1.0, "as modelled", dash="dash")
    _add_trials(figure, log, [t for t in log.trials if t.index in places], places)
    _ring(figure, log, places)
    return figure


def iso_row(log: SearchLog) -> LatencyRow | None:
    """Returns the costs for lines of equal speed-up, those at the shortest context.

    It is None without a latency table of several query lengths.
    """
    row = log.latency.rows[0] if log.latency is not None else None
    return row if row is not None and len(row.verify) > 1 else None


def _scale_by_trial(figure: go.Figure, log: SearchLog) -> tuple[float, float]:
    """Sets the x axis of a figure to trials and returns its two ends."""
    last = max((t.index for t in log.trials), default=0)
    ends = (-0.03 * last - 0.6, last * 1.03 + 0.6)
    figure.update_xaxes(range=list(ends), **_whole_ticks(last))
    return ends


def _add_iso_lines(figure: go.Figure, row: LatencyRow, x_range: list[float], y_range: list[float]) -> None:
    ratios = facts.verify_ratios(row)
    costs = np.linspace(max(x_range[0], 0.005), x_range[1], _LINE_POINTS)
    labelled: list[tuple[float, float]] = []
    for level in _levels(ratios, x_range, y_range):
        rates = 100 * facts.iso_line(level, costs, ratios)
        inside = np.isfinite(rates) & (rates >= y_range[0]) & (rates <= y_range[1])
        if not inside.any():
            continue
        even = math.isclose(level, 1.0)
        figure.add_trace(
            go.Scatter(
                x=costs[inside].tolist(),
                y=rates[inside].tolist(),
                mode="lines",
                line={"color": MUTED if even else PALE, "width": 1.8 if even else 1.2, "dash": "dash" if even else "solid"},
                hoverinfo="skip",
                showlegend=False,
                name=f"{level:g}{TIMES}",
            )
        )
        last = int(np.flatnonzero(inside)[-1])
        place = ((costs[last] - x_range[0]) / (x_range[1] - x_range[0]), (rates[last] - y_range[0]) / (y_range[1] - y_range[0]))
        if any(abs(place[0] - x) < _LABEL_ROOM[0] and abs(place[1] - y) < _LABEL_ROOM[1] for x, y in labelled):
            continue
        labelled.append(place)
        figure.add_annotation(
            x=float(costs[last]),
            y=float(rates[last]),
            text=f"{level:g}{TIMES}",
            showarrow=False,
            xanchor="right" if last == len(costs) - 1 else "center",
            font={"size": 11, "color": MUTED},
            bgcolor="rgba(255,255,255,0.85)",
            borderpad=1,
        )


def _levels(ratios: np.ndarray[Any, Any], x_range: list[float], y_range: list[float]) -> list[float]:
    """Returns the speed-ups to draw lines for: at most a few inside the figure, always 1 if it is inside."""
    corners = np.array([y_range[0], min(y_range[1], 100.0)]) / 100
    costs = np.array([x_range[1], max(x_range[0], 0.005)])
    low, high = facts.round_speedup(corners, costs, ratios)
    inside = [level for level in _LEVELS if low <= level <= high]
    step = -(-len(inside) // _MOST_LINES)
    return sorted({*inside[:: max(step, 1)], *(level for level in inside if level == 1.0)})


def _add_trials(figure: go.Figure, log: SearchLog, trials: Iterable[Trial], places: Mapping[int, tuple[float, float]]) -> None:
    """Adds a trace for each source, in the order of legends; trials that were stopped early are outlines."""
    trials = list(trials)
    sources = sorted({t.source for t in trials}, key=lambda s: (list(SOURCES).index(s) if s in SOURCES else len(SOURCES), s))
    for source in sources:
        style = source_style(source)
        own = [t for t in trials if t.source == source]
        figure.add_trace(
            go.Scatter(
                x=[places[t.index][0] for t in own],
                y=[places[t.index][1] for t in own],
                mode="markers",
                name=style.title,
                marker={
                    "color": style.colour,
                    "size": 9,
                    "symbol": [_symbol(style, t) for t in own],
                    "line": {"width": [1.4 if t.status == STOPPED else 0.6 for t in own], "color": [_outline(style, t) for t in own]},
                },
                hovertext=[_describe(log, t) for t in own],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    if any(t.status == STOPPED for t in trials):
        _add_legend_only(figure, "outline: stopped early", {"color": MUTED, "size": 9, "symbol": "circle-open", "line": {"width": 1.4}})


def _add_failed(figure: go.Figure, log: SearchLog, trials: list[Trial], places: Mapping[int, tuple[float, float]]) -> None:
    figure.add_trace(
        go.Scatter(
            x=[places[t.index][0] for t in trials],
            y=[places[t.index][1] for t in trials],
            mode="markers",
            name="failed",
            marker={"symbol": "x-thin", "size": 9, "color": INK, "line": {"width": 1.8, "color": INK}},
            hovertext=[_describe(log, t) for t in trials],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )


def _ring(figure: go.Figure, log: SearchLog, places: Mapping[int, tuple[float, float]]) -> None:
    """Adds a ring around the trial that the page shows in detail."""
    trial = facts.shown(log)
    if trial is None or trial.index not in places:
        return
    figure.add_trace(
        go.Scatter(
            x=[places[trial.index][0]],
            y=[places[trial.index][1]],
            mode="markers",
            name=f"trial {trial.index}: {'chosen' if facts.winner(log) is not None else 'shown in detail'}",
            marker={"symbol": "circle-open", "size": 19, "color": INK, "line": {"width": 1.8}},
            hoverinfo="skip",
        )
    )


def _add_legend_only(figure: go.Figure, name: str, marker: dict[str, Any]) -> None:
    figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=marker, hoverinfo="skip"))


def _symbol(style: SourceStyle, trial: Trial) -> str:
    return f"{style.symbol}-open" if trial.status == STOPPED else style.symbol


def _outline(style: SourceStyle, trial: Trial) -> str:
    return style.colour if trial.status == STOPPED else "#ffffff"


def _describe(log: SearchLog, trial: Trial) -> str:
    """Returns the text shown when the pointer is on a trial."""
    lines = [f"<b>trial {trial.index}</b> · {source_style(trial.source).title} · {trial.status}"]
    if trial.speedup is not None:
        lines.append(f"modelled speed-up {trial.speedup:.3f}{TIMES}")
    rate = facts.acceptance_rate(trial, log.header.weights)
    if rate is not None:
        lines.append(f"acceptance rate {100 * rate:.1f} %")
    if trial.cost_ratio is not None:
        lines.append(f"cost ratio {trial.cost_ratio:.3f}")
    lines.append(f"skips {len(trial.skip.attention)} attention, {len(trial.skip.mlp)} MLP of {log.header.num_layers} layers")
    if trial.error is not None:
        lines.append(label(trial.error))
    return "<br>".join(lines)


def _whole_ticks(last: int) -> dict[str, Any]:
    """Returns plotly's settings for whole-numbered ticks, which few trials would not get by default."""
    return {"dtick": 1} if last < 8 else {}
