"""The report's sections: each has its figures and what to make of them, or says in words why there is nothing to draw."""

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
    """One figure in the page.

    Attributes:
        id: of its `div`, the same in every report.
        says: what it shows, for whom cannot see it.
        figure: what plotly draws.
        caption: how to read it.
    """

    id: str
    says: str
    figure: go.Figure
    caption: str

    @property
    def key(self) -> list[Entry]:
        """What the figure's signs stand for."""
        return key_of(self.figure)


@dataclass(frozen=True, kw_only=True)
class PageSection:
    """One part of the page.

    Attributes:
        id: of the section, the same in every report.
        heading: its title.
        text: paragraphs before the figures.
        missing: sentences that stand where a figure cannot.
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
    section_id, heading = "progress", "Best so far"
    if not log.trials:
        return PageSection(id=section_id, heading=heading, missing=("No trial has ended yet.",))
    curve = facts.best_so_far(log)
    says = f"{_count(len(log.trials), 'trial')}"
    says += (
        f"; the best modelled speed-up grew from {curve[0][1]:.2f} to {curve[-1][1]:.2f} times plain decoding"
        if curve
        else ", none completed"
    )
    plot = Plot(
        id="plot-progress",
        says=says + ".",
        figure=progress_figure(log),
        caption="A point is a trial: one skip set, run as a real draft engine over the calibration texts. Its speed is computed from what "
        "was accepted and from the latency table. The line is the best completed trial up to there."
        + (
            " A trial drawn as an outline was stopped after a part of the text, as it could not become the best."
            if _has_stopped(log)
            else ""
        ),
    )
    return PageSection(
        id=section_id, heading=heading, missing=() if curve else ("No trial has completed, so there is no best one.",), plots=(plot,)
    )


def _trade(log: SearchLog) -> PageSection:
    section_id, heading = "trade", "Cheap drafts against accepted drafts"
    figure = trade_figure(log)
    if figure is None:
        return PageSection(
            id=section_id, heading=heading, missing=("No trial has both a cost ratio and an acceptance rate, so there is nothing to draw.",)
        )
    row = iso_row(log)
    caption = "To the left drafts are cheaper, to the top more of what they propose is accepted; a good one is both. "
    missing: tuple[str, ...] = ()
    if row is None:
        missing = ("There is no latency table beside this search, so no lines of equal speed-up can be drawn.",)
    else:
        caption += (
            f"Lines join points of equal speed-up, as {row.context} positions in the cache would give it if every token were accepted with "
            "the same chance and each draft had its best fixed length; on the dashed line drafting is just as fast as plain decoding. "
            "A draft that stops where it is unsure does better than its line says, and alternatives cost a little that the lines leave out."
        )
    absent = [t for t in log.trials if facts.acceptance_rate(t, log.header.weights) is None or t.cost_ratio is None]
    text = (f"{_count(len(absent), 'trial')} drafted nothing that could be counted and cannot be placed here.",) if absent else ()
    plot = Plot(id="plot-trade", says="Every trial by its draft's cost ratio and its acceptance rate.", figure=figure, caption=caption)
    return PageSection(id=section_id, heading=heading, text=text, missing=missing, plots=(plot,))


def _strip(log: SearchLog) -> PageSection:
    section_id = "skip-set"
    heading = "The chosen skip set" if facts.winner(log) is not None else "The best skip set" + (" so far" if log.result is None else "")
    trial = facts.shown(log)
    if trial is None:
        return PageSection(id=section_id, heading=heading, missing=("No trial has completed, so there is no skip set to show.",))
    num_layers = log.header.num_layers
    skipped = len(trial.skip.attention) + len(trial.skip.mlp)
    text = f"Trial {trial.index} leaves out {skipped} of {2 * num_layers} sublayers: {skip_text(trial)}."
    says = f"Skipped attention layers: {layer_ranges(trial.skip.attention)}. Skipped MLP layers: {layer_ranges(trial.skip.mlp)}."
    plot = Plot(
        id="plot-skip-set",
        says=says,
        figure=strip_figure(trial, num_layers),
        caption="Coloured cells are left out of the draft; pale ones are kept.",
    )
    return PageSection(id=section_id, heading=heading, text=(text,), missing=_not_chosen(log), plots=(plot,))


def _sublayers(log: SearchLog) -> PageSection:
    missing: list[str] = []
    plots: list[Plot] = []
    if log.sensitivity is None:
        missing.append("The influence of single sublayers was not measured" + (" yet." if log.result is None else "."))
    else:
        plots.append(
            Plot(
                id="plot-influence",
                says="How much of what the model expects next is lost when one sublayer is left out, by layer, for attention and MLPs.",
                figure=sensitivity_figure(log.sensitivity),
                caption="With one sublayer alone left out: the part of the next token's probability that moves elsewhere, which is how "
                "often even the luckiest draft token would be wrong. High bars are sublayers that a draft needs; where a bar goes beyond "
                "the scale, its value is written on it.",
            )
        )
    best = facts.ranked(log)[: facts.NUM_BEST]
    if not best:
        missing.append("No trial has completed, so there are no best trials to count over.")
    else:
        plots.append(
            Plot(
                id="plot-frequency",
                says=f"How often each attention and MLP is skipped in the best {_count(len(best), 'trial')}.",
                figure=frequency_figure(best, log.header.num_layers),
                caption="Where the best trials agree: sublayers that nearly all of them skip, and sublayers that none of them can spare."
                if len(best) > 1
                else "Only one trial has completed: it skips what is at 100 %.",
            )
        )
    return PageSection(id="sublayers", heading="Which sublayers matter", missing=tuple(missing), plots=tuple(plots))


def _latency(log: SearchLog) -> PageSection:
    section_id, heading = "latency", "What a step costs"
    table = log.latency
    if table is None:
        return PageSection(id=section_id, heading=heading, missing=("There is no latency table beside this search.",))
    text = (
        f"Measured once on {table.cpu} with {_count(table.threads, 'thread')} and ONNX Runtime {table.onnxruntime}; every modelled speed "
        "comes from this table. "
        "A draft has a size, a base and a share for each sublayer that it keeps, and its steps take a part of that size. "
        f"A step modelled so misses the ones it was fitted to by at most {100 * table.fit_error:.1f}\u00a0%."
    )
    verify = Plot(
        id="plot-verify",
        says="Time of a verify pass by the number of positions it verifies, for each context length.",
        figure=verify_figure(table),
        caption="A pass over one position is a plain step. The flatter the line, the cheaper it is to check a long draft.",
    )
    shown = facts.shown(log)
    parts = Plot(
        id="plot-draft-cost",
        says="The parts of a draft's size beside a plain step, for each context length.",
        figure=draft_cost_figure(table, shown),
        caption="The parts of a draft's size with nothing skipped"
        + (f"; the pale ones are what trial {shown.index} saves." if shown is not None else ".")
        + " The upright mark is a plain step of the full model.",
    )
    steps = Plot(
        id="plot-steps",
        says="Time of a draft's first and later steps as a part of its size, by size, for each context length.",
        figure=step_figure(table),
        caption="A verify pass reads all the weights. So a draft's first step after one finds little of its own in the processor's caches, "
        "and a small draft's later steps find more.",
    )
    return PageSection(id=section_id, heading=heading, text=(text,), plots=(verify, parts, steps))


def _clock(log: SearchLog) -> PageSection:
    section_id, heading = "clock", "The model of speed against the clock"
    figure = clock_figure(log)
    if figure is None:
        return PageSection(id=section_id, heading=heading, missing=("No trial was timed.",))
    error = facts.median_clock_error(log)
    plot = Plot(
        id="plot-clock",
        says=f"Measured over modelled speed of every trial that was timed; the median distance from 1 is {100 * error:.1f}\u00a0%.",
        figure=figure,
        caption="Trials that completed decoded one text by the clock, a few dozen tokens each. The table of costs gave the same rounds the "
        f"speed that theirs is divided by; half of them are within {100 * error:.1f}\u00a0% of it. So short a run tells less than a "
        "finalist's; trials that drift away from 1 one after the other say that the machine changed its pace while the search ran.",
    )
    return PageSection(id=section_id, heading=heading, plots=(plot,))


def _positions(log: SearchLog) -> PageSection:
    section_id, heading = "positions", "Acceptance by place in the draft"
    trial = facts.shown(log)
    figure = position_figure(trial.counts) if trial is not None else None
    if trial is None or figure is None:
        why = "No trial has completed" if trial is None else f"Trial {trial.index} drafted nothing"
        return PageSection(id=section_id, heading=heading, missing=(f"{why}, so there is nothing to count.",))
    plot = Plot(
        id="plot-positions",
        says=f"Part of trial {trial.index}'s drafts that are accepted up to each place, by kind of text.",
        figure=figure,
        caption=f"Trial {trial.index}, over the calibration texts: of the drafts that are at least this long, the part whose tokens were "
        "all accepted up to here, the last of them perhaps as an alternative. "
        "Bars are 95\u00a0% intervals (Wilson). A draft only gets long where it was sure of itself, so the line may rise.",
    )
    return PageSection(id=section_id, heading=heading, missing=_not_chosen(log), plots=(plot,))


def _final(log: SearchLog) -> PageSection:
    section_id, heading = "final", "Plain against speculative, timed"
    if not log.finalists:
        why = "No finalist was timed for real" + (": the search has not ended yet." if log.result is None else ".")
        return PageSection(id=section_id, heading=heading, missing=(why,))
    chosen = facts.winner(log)
    missing: tuple[str, ...] = ()
    if log.result is not None and chosen is None:
        missing = ("None of the finalists beat plain decoding, so the artifact decodes plainly.",)
    best = max(log.finalists, key=lambda f: f.speedup)
    plot = Plot(
        id="plot-final",
        says=f"Measured and modelled speed of {_count(len(log.finalists), 'finalist')} beside plain decoding; the fastest reached "
        f"{best.speedup:.2f} times plain.",
        figure=finalists_figure(log.finalists, None if chosen is None else chosen.index),
        caption=f"Timed in turns with plain decoding, prompt by prompt ({_count(best.prompts, 'run')}). The line at the end of a bar is "
        "the 95\u00a0% interval of the speed-up (paired bootstrap over prompts). The hatched bar is what the model of costs said of the "
        "same text.",
    )
    return PageSection(id=section_id, heading=heading, missing=missing, plots=(plot,))


def skip_text(trial: Trial) -> str:
    """Returns a skip set in words."""
    return f"attention {layer_ranges(trial.skip.attention)}; MLP {layer_ranges(trial.skip.mlp)}"


def layer_ranges(layers: Sequence[int]) -> str:
    """Returns layer numbers with runs of them drawn together, such as `1, 3-6`."""
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
    which = "the finalist that came closest" if log.finalists else "the best trial by modelled speed"
    if log.result is None:
        return (f"The search has not ended: this is {'the fastest finalist' if log.finalists else which} so far.",)
    return (f"Nothing beat plain decoding, so no draft was chosen: this is {which}.",)


def _has_stopped(log: SearchLog) -> bool:
    return any(t.status == STOPPED for t in log.trials)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
