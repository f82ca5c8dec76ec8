"""The sections of the report: figures with captions, or a sentence that says why a figure is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from sstool.search.log.read import SearchLog
from sstool.search.log.records import STOPPED, Trial
from sstool.search_report import facts
from sstool.search_report.key import Entry, key_of
from sstool.search_report.sublayer_plots import frequency_figure, sensitivity_figure, strip_figure
from sstool.search_report.timing_plots import draft_cost_figure, finalists_figure, position_figure, step_figure, verify_figure
from sstool.search_report.trial_plots import clock_figure, iso_row, progress_figure, trade_figure


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One figure of the page.

    Attributes:
        id: id of its `div`, the same in every report.
        alt_text: text that replaces the figure for screen readers.
        figure: the plotly figure.
        caption: how to read the figure.
    """

    id: str
    alt_text: str
    figure: go.Figure
    caption: str

    @property
    def key(self) -> list[Entry]:
        """The entries of the figure's legend."""
        return key_of(self.figure)


@dataclass(frozen=True, kw_only=True)
class PageSection:
    """One part of the page.

    Attributes:
        id: id of the section's element, the same in every report.
        heading: title of the section.
        text: paragraphs before the figures.
        missing: sentences that say why a figure is missing.
        plots: the figures.
    """

    id: str
    heading: str
    text: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()


def sections(log: SearchLog) -> list[PageSection]:
    """Returns all sections in the order of the page."""
    return [_progress(log), _final(log), _strip(log), _trade(log), _sublayers(log), _positions(log), _latency(log), _clock(log)]


def _progress(log: SearchLog) -> PageSection:
    section_id, heading = "progress", "Progress of the search"
    if not log.trials:
        return PageSection(id=section_id, heading=heading, missing=("No trial has ended yet.",))
    curve = facts.best_so_far(log)
    alt_text = f"{_count(len(log.trials), 'trial')}"
    alt_text += f"; the best modelled speed-up rose from {curve[0][1]:.2f} to {curve[-1][1]:.2f}" if curve else ", none completed"
    plot = Plot(
        id="plot-progress",
        alt_text=alt_text + ".",
        figure=progress_figure(log),
        caption="Each point is a trial: one skip set, run as a real draft engine over the calibration texts. Its speed-up over "
        "autoregressive decoding is modelled from the number of accepted tokens and the latency table. The solid line is the best "
        "completed trial so far."
        + (" Outlines are trials that were stopped early, because they could not become the best." if _has_stopped(log) else ""),
    )
    return PageSection(
        id=section_id, heading=heading, missing=() if curve else ("No trial has completed, so there is no best trial.",), plots=(plot,)
    )


def _trade(log: SearchLog) -> PageSection:
    section_id, heading = "trade", "Draft cost and acceptance rate"
    figure = trade_figure(log)
    if figure is None:
        return PageSection(
            id=section_id, heading=heading, missing=("No trial has both a cost ratio and an acceptance rate, so there is nothing to draw.",)
        )
    row = iso_row(log)
    caption = "Drafts further left are cheaper, and drafts further up have more of their tokens accepted. A good draft is both. "
    missing: tuple[str, ...] = ()
    if row is None:
        missing = ("There is no latency table for several query lengths, so no lines of equal speed-up can be drawn.",)
    else:
        caption += (
            f"Each line joins points of equal speed-up for {row.context} tokens in the KV cache, if every token is accepted with the same "
            "probability and the draft length is fixed at its best value. On the dashed line speculative decoding is as fast as "
            "autoregressive decoding. A draft that stops at low confidence does better than its line. The lines leave out the small cost "
            "of alternatives (side branches of the token tree, one token long)."
        )
    absent = [t for t in log.trials if facts.acceptance_rate(t, log.header.weights) is None or t.cost_ratio is None]
    text = (f"Not drawn for lack of an acceptance rate or a cost ratio: {_count(len(absent), 'trial')}.",) if absent else ()
    plot = Plot(id="plot-trade", alt_text="All trials by draft cost ratio and acceptance rate.", figure=figure, caption=caption)
    return PageSection(id=section_id, heading=heading, text=text, missing=missing, plots=(plot,))


def _strip(log: SearchLog) -> PageSection:
    section_id = "skip-set"
    heading = "The chosen skip set" if facts.winner(log) is not None else "The best skip set" + (" so far" if log.result is None else "")
    trial = facts.shown(log)
    if trial is None:
        return PageSection(id=section_id, heading=heading, missing=("No trial has completed, so there is no skip set to show.",))
    num_layers = log.header.num_layers
    skipped = len(trial.skip.attention) + len(trial.skip.mlp)
    text = f"Trial {trial.index} skips {skipped} of {2 * num_layers} sublayers: {skip_text(trial)}."
    alt_text = f"Skipped attention layers: {layer_ranges(trial.skip.attention)}. Skipped MLP layers: {layer_ranges(trial.skip.mlp)}."
    if trial.int4:
        alt_text += f" In int4: attention {layer_ranges(trial.int4.attention)}; MLP {layer_ranges(trial.int4.mlp)}."
    plot = Plot(
        id="plot-skip-set",
        alt_text=alt_text,
        figure=strip_figure(trial, num_layers),
        caption="The draft skips the coloured sublayers and keeps the grey ones"
        + (", and the pale ones with int4 weights of its own." if trial.int4 else "."),
    )
    return PageSection(id=section_id, heading=heading, text=(text,), missing=_not_chosen(log), plots=(plot,))


def _sublayers(log: SearchLog) -> PageSection:
    missing: list[str] = []
    plots: list[Plot] = []
    if log.sensitivity is None:
        missing.append("The leave-one-out sensitivity of the sublayers was not measured" + (" yet." if log.result is None else "."))
    else:
        plots.append(
            Plot(
                id="plot-influence",
                alt_text="Leave-one-out sensitivity of each attention and MLP sublayer, by layer.",
                figure=sensitivity_figure(log.sensitivity),
                caption="Leave-one-out sensitivity: the total variation distance between the next-token distributions of the full "
                "model and of a draft that skips only this sublayer. It is the lowest rejection rate that this draft could have when "
                "sampling. A draft needs the sublayers with high bars. A bar that exceeds the scale is labelled with its value.",
            )
        )
    best = facts.ranked(log)[: facts.NUM_BEST]
    if not best:
        missing.append("No trial has completed, so there are no best trials to compare.")
    else:
        plots.append(
            Plot(
                id="plot-frequency",
                alt_text=f"How often the best {_count(len(best), 'trial')} skip each attention and each MLP, by layer.",
                figure=frequency_figure(best, log.header.num_layers),
                caption=f"Share of the best {len(best)} trials that skip a sublayer. A sublayer without a bar is kept by all of them."
                if len(best) > 1
                else "Only one trial has completed: it skips the sublayers at 100\u00a0%.",
            )
        )
    return PageSection(id="sublayers", heading="Which sublayers matter", missing=tuple(missing), plots=tuple(plots))


def _latency(log: SearchLog) -> PageSection:
    section_id, heading = "latency", "Latency of verify passes and draft steps"
    table = log.latency
    if table is None:
        return PageSection(id=section_id, heading=heading, missing=("There is no latency table beside this search.",))
    text = (
        f"The latency table was measured once on {table.cpu} with {_count(table.threads, 'thread')} and ONNX Runtime "
        f"{table.onnxruntime}; every modelled speed is computed from it. The speed model gives each draft a size in ms: a base plus the "
        "cost of each sublayer that it keeps, which is less in int4. A draft step takes this size times the factor in the last figure. "
        f"The measured steps of the probe drafts differ from the modelled ones by at most {100 * table.fit_error:.1f}\u00a0%."
    )
    verify = Plot(
        id="plot-verify",
        alt_text="Latency of a verify pass by query length, with a line for each context length.",
        figure=verify_figure(table),
        caption="A pass over one token is an autoregressive step. The flatter the line, the cheaper it is to verify a long draft.",
    )
    shown = facts.shown(log)
    parts = Plot(
        id="plot-draft-cost",
        alt_text="The parts of a draft's size and the latency of an autoregressive step, for each context length.",
        figure=draft_cost_figure(table, shown),
        caption="The parts of the size of a draft that skips nothing, over shared weights"
        + (f"; trial {shown.index} saves the pale parts." if shown is not None else ".")
        + " The vertical mark is the latency of an autoregressive step of the full model.",
    )
    steps = Plot(
        id="plot-steps",
        alt_text="Latency of the first and of later draft steps in percent of the draft's size, by size, for each context length.",
        figure=step_figure(table),
        caption="A verify pass reads all weights of the model, so the first draft step after it finds few of the draft's weights in the "
        "CPU caches. Later steps of a small draft find more of them there and are faster.",
    )
    return PageSection(id=section_id, heading=heading, text=(text,), plots=(verify, parts, steps))


def _clock(log: SearchLog) -> PageSection:
    section_id, heading = "clock", "Speed model and measured speed"
    figure = clock_figure(log)
    if figure is None:
        return PageSection(id=section_id, heading=heading, missing=("No trial was timed.",))
    error = facts.median_clock_error(log)
    plot = Plot(
        id="plot-clock",
        alt_text=f"Measured / modelled speed of every timed trial; the median distance from 1 is {100 * error:.1f}\u00a0%.",
        figure=figure,
        caption="Completed trials also decoded a few dozen tokens of one text in a timed run. A point is the measured speed of this run, "
        f"divided by the modelled speed of the same rounds; half of the points are within {100 * error:.1f}\u00a0% of 1. Such a short run "
        "is less reliable than the timing of a finalist. If successive trials drift away from 1, the machine became faster or slower "
        "during the search.",
    )
    return PageSection(id=section_id, heading=heading, plots=(plot,))


def _positions(log: SearchLog) -> PageSection:
    section_id, heading = "positions", "Acceptance by position in the draft"
    trial = facts.shown(log)
    figure = position_figure(trial.counts) if trial is not None else None
    if trial is None or figure is None:
        why = "No trial has completed" if trial is None else f"Trial {trial.index} drafted nothing"
        return PageSection(id=section_id, heading=heading, missing=(f"{why}, so there is nothing to count.",))
    plot = Plot(
        id="plot-positions",
        alt_text=f"Share of trial {trial.index}'s drafts that are accepted up to each position, by kind of text.",
        figure=figure,
        caption=f"Trial {trial.index} on the calibration texts. A point is the share of the drafts with at least this many tokens in which "
        "every token up to this one was accepted. The last of them may be an alternative (a side branch of the token tree, one token "
        "long). Error bars are 95\u00a0% Wilson intervals. Only confident drafts become long, so a line may rise.",
    )
    return PageSection(id=section_id, heading=heading, missing=_not_chosen(log), plots=(plot,))


def _final(log: SearchLog) -> PageSection:
    section_id, heading = "final", "Head-to-head timing of the finalists"
    if not log.finalists:
        why = "No finalist was timed" + (": the search has not ended yet." if log.result is None else ".")
        return PageSection(id=section_id, heading=heading, missing=(why,))
    chosen = facts.winner(log)
    missing: tuple[str, ...] = ()
    if log.result is not None and chosen is None:
        missing = ("No finalist beat autoregressive decoding, so the artifact decodes autoregressively (mode plain).",)
    best = max(log.finalists, key=lambda f: f.speedup)
    plot = Plot(
        id="plot-final",
        alt_text=f"Speed of autoregressive decoding and measured and modelled speed of {_count(len(log.finalists), 'finalist')}; the "
        f"best speed-up is {best.speedup:.2f}.",
        figure=finalists_figure(log.finalists, None if chosen is None else chosen.index),
        caption=f"Finalists and autoregressive decoding took turns, prompt by prompt ({_count(best.prompts, 'run')} each). The error bar "
        "is the 95\u00a0% interval of the speed-up (paired bootstrap over prompts). The hatched bar is the modelled speed on the same "
        "text.",
    )
    return PageSection(id=section_id, heading=heading, missing=missing, plots=(plot,))


def skip_text(trial: Trial) -> str:
    """Returns what a trial's draft skips, and what it has int4 weights for, in words."""
    text = f"attention {layer_ranges(trial.skip.attention)}; MLP {layer_ranges(trial.skip.mlp)}"
    if not trial.int4:
        return text
    head = ", the LM head" if trial.int4.head else ""
    return f"{text}. In int4: attention {layer_ranges(trial.int4.attention)}; MLP {layer_ranges(trial.int4.mlp)}{head}"


def layer_ranges(layers: Sequence[int]) -> str:
    """Returns layer numbers in rising order, three or more consecutive ones as a range with an en dash."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(_run(run) for run in runs) or "none"


def _run(run: Sequence[int]) -> str:
    if len(run) < 3:
        return ", ".join(str(layer) for layer in run)
    return f"{run[0]}\u2013{run[-1]}"


def _not_chosen(log: SearchLog) -> tuple[str, ...]:
    if facts.winner(log) is not None:
        return ()
    which = "the fastest finalist" if log.finalists else "the best trial by modelled speed"
    if log.result is None:
        return (f"The search has not ended: this is {which} so far.",)
    return (f"No draft beat autoregressive decoding, so none was chosen: this is {which}.",)


def _has_stopped(log: SearchLog) -> bool:
    return any(t.status == STOPPED for t in log.trials)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
