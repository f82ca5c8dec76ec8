"""Figures of time: what passes and draft steps cost, how far drafts are accepted, and what the finalists really gave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from sstool.search.log.records import Counts, Finalist, LatencyTable, Trial
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
    """Draws what a verify pass takes by its width, a line for each context length."""
    figure = new_figure(height=340, x="positions verified in one pass", y="time of the pass (ms)")
    for at, row in enumerate(table.rows):
        figure.add_trace(
            go.Scatter(
                x=list(range(1, len(row.verify) + 1)),
                y=[1000 * s for s in row.verify],
                customdata=[s / row.verify[0] for s in row.verify],
                mode="lines+markers",
                name=f"after {row.context} positions",
                line={"color": _shade(at, table), "width": 2},
                marker={"symbol": _SYMBOLS[at % len(_SYMBOLS)], "size": 7},
                hovertemplate=f"{row.context} positions before, %{{x}} verified:<br>"
                "%{y:.2f} ms, %{customdata:.2f} plain steps<extra></extra>",
            )
        )
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(dtick=1 if len(table.rows[0].verify) < 10 else 5, tick0=0, rangemode="tozero")
    return figure


def step_figure(table: LatencyTable) -> go.Figure:
    """Draws what a draft's first step and its later ones take as a part of its size, by size, two lines for each context length."""
    figure = new_figure(height=340, x="size of the draft (ms)", y="time of a step (% of the size)")
    for at, row in enumerate(table.rows):
        for name, parts, dash in (("first step", row.first, "solid"), ("later steps", row.later, "dot")):
            figure.add_trace(
                go.Scatter(
                    x=[1000 * size for size in row.sizes],
                    y=[100 * part for part in parts],
                    customdata=[1000 * size * part for size, part in zip(row.sizes, parts, strict=True)],
                    mode="lines+markers",
                    name=f"{name}, after {row.context} positions",
                    line={"color": _shade(at, table), "width": 2, "dash": dash},
                    marker={"symbol": _SYMBOLS[at % len(_SYMBOLS)], "size": 7},
                    hovertemplate=f"{name}, {row.context} positions before:<br>"
                    "%{customdata:.2f} ms, %{y:.0f} % of %{x:.2f} ms<extra></extra>",
                )
            )
    figure.update_xaxes(rangemode="tozero")
    return figure


def _shade(at: int, table: LatencyTable) -> str:
    return CONTEXT_SHADES[min(at * len(CONTEXT_SHADES) // len(table.rows), len(CONTEXT_SHADES) - 1)]


def draft_cost_figure(table: LatencyTable, trial: Trial | None) -> go.Figure:
    """Draws the parts of a draft's size with nothing skipped, what a trial's draft keeps in full colour, beside a plain step."""
    height = 90 + 60 * len(table.rows)
    figure = new_figure(height=height, x="size of a draft (ms)", y="")
    skipped = (
        {"attention": set(trial.skip.attention), "mlp": set(trial.skip.mlp)} if trial is not None else {"attention": set(), "mlp": set()}
    )
    contexts = [f"after {row.context}<br>positions" for row in table.rows]
    parts: list[tuple[str, str, list[float]]] = [("embedding, norms, head, host", MUTED, [row.draft_base for row in table.rows])]
    for skip, suffix, colours in ((False, "kept" if trial else "", (BLUE, ORANGE)), (True, "skipped", (PALE_BLUE, PALE_ORANGE))):
        for (kind, title), colour in zip((("attention", "attention"), ("mlp", "MLPs")), colours, strict=True):
            values = [
                math.fsum(s for layer, s in enumerate(costs) if (layer in skipped[kind]) == skip)
                for costs in ((row.attention if kind == "attention" else row.mlp) for row in table.rows)
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
            name="a plain step",
            marker={"symbol": "line-ns", "size": 30, "line": {"width": 3, "color": INK}, "color": INK},
            hovertemplate="a plain step: %{x:.3f} ms<extra></extra>",
        )
    )
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", ticklabelstandoff=6)
    return figure


def position_figure(counts: Mapping[str, Counts]) -> go.Figure | None:
    """Draws how often the token at each place of a draft is accepted, of the drafts that reach so far; None if nothing was drafted."""
    drafted = {kind: c for kind, c in counts.items() if any(c.reached)}
    if not drafted:
        return None
    figure = new_figure(height=340, x="place in the draft", y="drafts accepted up to here (%)")
    for at, (kind, (colour, symbol)) in enumerate(text_styles(list(drafted)).items()):
        points = [(j, k, r) for j, (k, r) in enumerate(zip(drafted[kind].kept, drafted[kind].reached, strict=True), start=1) if r]
        low, high = zip(*(wilson_interval(k, r) for _, k, r in points), strict=True)
        rates = [k / r for _, k, r in points]
        # Side by side, so that the kinds' intervals do not hide each other.
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
                hovertemplate="place %{customdata[0]}: %{customdata[1]} of %{customdata[2]} drafts, %{y:.1f} %<extra></extra>",
            )
        )
    longest = max(len(c.reached) for c in drafted.values())
    figure.update_yaxes(range=[0, 104])
    figure.update_xaxes(tick0=1, dtick=1, range=[0.5, longest + 0.5])
    return figure


def finalists_figure(finalists: Sequence[Finalist], chosen: int | None) -> go.Figure:
    """Draws each finalist's measured speed with its interval, plain decoding's in the same run, and the modelled speed."""
    figure = new_figure(height=90 + 92 * len(finalists), x="tokens per second", y="")
    names = [_finalist_name(f, chosen) for f in finalists]
    series = (
        ("plain, measured", PALE, "", [f.plain for f in finalists]),
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
    """Returns the 95 % interval of a rate by Wilson's score, which stays within 0 and 1."""
    rate, spread = hits / trials, _Z_95**2 / trials
    middle = (rate + spread / 2) / (1 + spread)
    half = _Z_95 / (1 + spread) * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    return min(max(0.0, middle - half), rate), max(min(1.0, middle + half), rate)


def _interval(finalists: Sequence[Finalist]) -> dict[str, object]:
    """Returns the speed-up's interval in tokens per second, around the measured speed."""
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
