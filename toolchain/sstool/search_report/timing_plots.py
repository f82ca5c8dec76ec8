"""Figures of the latency table, of acceptance by position in the draft, and of the head-to-head timing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from sstool.search.log.records import Counts, Finalist, LatencyRow, LatencyTable, Trial
from sstool.search_report.style import (
    BLUE,
    CONTEXT_SHADES,
    INK,
    MUTED,
    ORANGE,
    PALE,
    PALE_BLUE,
    PALE_ORANGE,
    TIMES,
    label,
    new_figure,
    text_styles,
)

_Z_95 = 1.96
_SYMBOLS = ("circle", "square", "diamond")


def verify_figure(table: LatencyTable) -> go.Figure:
    """Returns a figure of the latency of a verify pass by query length, a line for each context length."""
    figure = new_figure(height=340, x="query length (tokens per pass)", y="latency of the pass (ms)")
    for at, row in enumerate(table.rows):
        figure.add_trace(
            go.Scatter(
                x=list(range(1, len(row.verify) + 1)),
                y=[1000 * s for s in row.verify],
                customdata=[s / row.verify[0] for s in row.verify],
                mode="lines+markers",
                name=_context(row),
                line={"color": _shade(at, table), "width": 2},
                marker={"symbol": _SYMBOLS[at % len(_SYMBOLS)], "size": 7},
                hovertemplate=f"{_context(row)}, query length %{{x}}:<br>"
                "%{y:.2f} ms, %{customdata:.2f} autoregressive steps<extra></extra>",
            )
        )
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(dtick=1 if len(table.rows[0].verify) < 10 else 5, tick0=0, rangemode="tozero")
    return figure


def step_figure(table: LatencyTable) -> go.Figure:
    """Returns a figure of the latency of first and later draft steps by the draft's size, in percent of it.

    Each context length has two lines, and two more where drafts may have int4 weights. A draft's size is its
    base plus the cost of the sublayers it keeps.
    """
    figure = new_figure(height=340, x="draft size (ms)", y="latency of a draft step (% of size)")
    for at, row in enumerate(table.rows):
        lines = [("first step", row.draft, row.draft.first, "solid"), ("later steps", row.draft, row.draft.later, "dot")]
        if row.int4 is not None:
            lines += [("first step, int4", row.int4, row.int4.first, "dash"), ("later steps, int4", row.int4, row.int4.later, "dashdot")]
        for name, costs, parts, dash in lines:
            figure.add_trace(
                go.Scatter(
                    x=[1000 * size for size in costs.sizes],
                    y=[100 * part for part in parts],
                    customdata=[1000 * size * part for size, part in zip(costs.sizes, parts, strict=True)],
                    mode="lines+markers",
                    name=f"{name}, {_context(row)}",
                    line={"color": _shade(at, table), "width": 2, "dash": dash},
                    marker={"symbol": _SYMBOLS[at % len(_SYMBOLS)], "size": 7},
                    hovertemplate=f"{name}, {_context(row)}:<br>%{{customdata:.2f}} ms, %{{y:.0f}} % of %{{x:.2f}} ms<extra></extra>",
                )
            )
    figure.update_xaxes(rangemode="tozero")
    return figure


def _context(row: LatencyRow) -> str:
    return f"context of {row.context} tokens"


def _shade(at: int, table: LatencyTable) -> str:
    return CONTEXT_SHADES[min(at * len(CONTEXT_SHADES) // len(table.rows), len(CONTEXT_SHADES) - 1)]


def draft_cost_figure(table: LatencyTable, trial: Trial | None) -> go.Figure:
    """Returns a figure of the parts of a draft's size and of an autoregressive step, by context length.

    The bars show a draft that skips nothing. The parts that the trial's draft skips are pale.
    """
    height = 90 + 60 * len(table.rows)
    figure = new_figure(height=height, x="draft size (ms)", y="")
    skipped = (
        {"attention": set(trial.skip.attention), "mlp": set(trial.skip.mlp)} if trial is not None else {"attention": set(), "mlp": set()}
    )
    contexts = [f"context of<br>{row.context} tokens" for row in table.rows]
    parts: list[tuple[str, str, list[float]]] = [("embedding, norms, LM head, host", MUTED, [row.draft.base for row in table.rows])]
    for skip, suffix, colours in ((False, "kept" if trial else "", (BLUE, ORANGE)), (True, "skipped", (PALE_BLUE, PALE_ORANGE))):
        for (kind, title), colour in zip((("attention", "attention"), ("mlp", "MLP")), colours, strict=True):
            values = [
                math.fsum(s for layer, s in enumerate(costs) if (layer in skipped[kind]) == skip)
                for costs in ((row.draft.attention if kind == "attention" else row.draft.mlp) for row in table.rows)
            ]
            if trial is not None or not skip:
                parts.append((f"{title} {suffix}".strip(), colour, values))
    for name, colour, seconds in parts:
        figure.add_trace(
            go.Bar(
                y=contexts,
                x=[1000 * s for s in seconds],
                orientation="h",
                name=name,
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate=f"{name}: %{{x:.3f}} ms<extra></extra>",
            )
        )
    figure.add_trace(
        go.Scatter(
            y=contexts,
            x=[1000 * row.verify[0] for row in table.rows],
            mode="markers",
            name="autoregressive step",
            marker={"symbol": "line-ns", "size": 30, "line": {"width": 3, "color": INK}, "color": INK},
            hovertemplate="autoregressive step: %{x:.3f} ms<extra></extra>",
        )
    )
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", ticklabelstandoff=6)
    return figure


def position_figure(counts: Mapping[str, Counts]) -> go.Figure | None:
    """Returns a figure of the share of drafts accepted up to each position; None if nothing was drafted.

    A position's share is over the drafts that have a token there.
    """
    drafted = {kind: c for kind, c in counts.items() if any(c.reached)}
    if not drafted:
        return None
    figure = new_figure(height=340, x="position in the draft", y="drafts accepted so far (%)")
    for at, (kind, (colour, symbol)) in enumerate(text_styles(list(drafted)).items()):
        points = [(j, k, r) for j, (k, r) in enumerate(zip(drafted[kind].kept, drafted[kind].reached, strict=True), start=1) if r]
        low, high = zip(*(wilson_interval(k, r) for _, k, r in points), strict=True)
        rates = [k / r for _, k, r in points]
        # Shifted, so that the error bars of different kinds of text do not cover each other.
        shift = 0.12 * (at - (len(drafted) - 1) / 2)
        figure.add_trace(
            go.Scatter(
                x=[j + shift for j, _, _ in points],
                y=[100 * rate for rate in rates],
                customdata=[[j, k, r] for j, k, r in points],
                error_y={
                    "type": "data",
                    "array": [100 * (h - rate) for h, rate in zip(high, rates, strict=True)],
                    "arrayminus": [100 * (rate - lo) for lo, rate in zip(low, rates, strict=True)],
                    "thickness": 1,
                    "width": 3,
                },
                mode="lines+markers",
                name=f"{label(kind)} text",
                line={"color": colour, "width": 2},
                marker={"symbol": symbol, "size": 8},
                hovertemplate="position %{customdata[0]}: %{customdata[1]} of %{customdata[2]} drafts, %{y:.1f} %<extra></extra>",
            )
        )
    longest = max(len(c.reached) for c in drafted.values())
    figure.update_yaxes(range=[0, 104])
    figure.update_xaxes(tick0=1, dtick=1, range=[0.5, longest + 0.5])
    return figure


def finalists_figure(finalists: Sequence[Finalist], chosen: int | None) -> go.Figure:
    """Returns a figure of the finalists' measured and modelled speeds and of autoregressive decoding's speed.

    Args:
        finalists: the timed finalists, at least one.
        chosen: index of the chosen trial; None if none was chosen.
    """
    figure = new_figure(height=90 + 92 * len(finalists), x="tokens per second", y="")
    names = [_finalist_name(f, chosen) for f in finalists]
    series = (
        ("autoregressive, measured", PALE, "", [f.plain for f in finalists]),
        ("speculative, measured", BLUE, "", [f.measured for f in finalists]),
        ("speculative, modelled", PALE_BLUE, "/", [f.modelled for f in finalists]),
    )
    for name, colour, shape, values in series:
        bar = go.Bar(
            y=names,
            x=values,
            orientation="h",
            name=name,
            marker={"color": colour, "line": {"width": 0}, "pattern": {"shape": shape, "fgcolor": BLUE, "size": 5, "solidity": 0.25}},
            hovertemplate=f"{name}: %{{x:.1f}} tokens/s<extra></extra>",
        )
        if name == "speculative, measured":
            bar.error_x = _interval(finalists)
        figure.add_trace(bar)
    figure.update_layout(barmode="group", bargap=0.3, bargroupgap=0.06)
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", ticklabelstandoff=6)
    return figure


def wilson_interval(hits: int, trials: int) -> tuple[float, float]:
    """Returns the 95 % Wilson score interval of a rate, which stays within 0 and 1."""
    rate, spread = hits / trials, _Z_95**2 / trials
    middle = (rate + spread / 2) / (1 + spread)
    half = _Z_95 / (1 + spread) * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    return min(max(0.0, middle - half), rate), max(min(1.0, middle + half), rate)


def _interval(finalists: Sequence[Finalist]) -> dict[str, object]:
    """Returns the intervals of the speed-ups as plotly's error bars, in tokens per second."""
    bounds = [f.interval_95 or (f.speedup, f.speedup) for f in finalists]
    return {
        "type": "data",
        "array": [max(0.0, (high - f.speedup) * f.plain) for f, (_, high) in zip(finalists, bounds, strict=True)],
        "arrayminus": [max(0.0, (f.speedup - low) * f.plain) for f, (low, _) in zip(finalists, bounds, strict=True)],
        "color": INK,
        "thickness": 1.6,
        "width": 5,
    }


def _finalist_name(finalist: Finalist, chosen: int | None) -> str:
    title = f"trial {finalist.trial}"
    speed = f"{finalist.speedup:.2f}{TIMES}"
    if finalist.interval_95 is not None:
        low, high = finalist.interval_95
        speed += f" ({low:.2f}\u2013{high:.2f})"
    return f"<b>{title}, chosen<br>{speed}</b>" if finalist.trial == chosen else f"{title}<br>{speed}"
