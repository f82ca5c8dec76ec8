"""Texts and numbers for the top of the page, the table of the best trials and the list of failed ones."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Final

from sstool.search.log.read import SearchLog
from sstool.search.log.records import COMPLETED, FAILED, STOPPED, Trial
from sstool.search_report import facts
from sstool.search_report.sections import skip_text
from sstool.search_report.style import TIMES, source_style

NOTHING: Final = "\u2013"
"""Text of a table cell without a value."""
_PARTS: Final = {
    "texts": "calibration texts",
    "latency": "latency table",
    "influence": "leave-one-out sensitivity",
    "dynamic_programme": "dynamic programming",
    "candidates": "running candidates",
    "ax": "Ax",
    "finalists": "head-to-head timing",
}
"""Names of the parts of a search's time, in the order in which a search spends it."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One highlighted number of the summary.

    Attributes:
        name: name of the quantity.
        value: the number with its unit.
        note: remark under the number; may be empty.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table of trials, as text."""

    trial: str
    source: str
    speedup: str
    measured: str
    cost_ratio: str
    acceptance: str
    per_round: str
    exit: str
    skips: str
    chosen: bool


def verdict(log: SearchLog) -> str:
    """Returns the result of the search in one sentence."""
    if log.result is None:
        best = next(iter(facts.ranked(log)), None)
        so_far = f"{len(log.trials)} of at most {log.header.trials} trials so far"
        if best is None:
            return f"The search has not ended: {so_far}{', none of them completed' if log.trials else ''}."
        modelled = f"{facts.speedup_of(best):.2f}{TIMES}"
        return f"The search has not ended: {so_far}, the best modelled speed-up is {modelled} (trial {best.index})."
    winner = facts.winner(log)
    if winner is None:
        return "No draft beat autoregressive decoding here, so the artifact decodes autoregressively (mode plain)."
    if log.result.speedup is None:
        modelled = f"{facts.speedup_of(winner):.2f}{TIMES}"
        return f"Trial {winner.index} was chosen by its modelled speed-up of {modelled}; it was not timed."
    speeds = " and ".join(f"{speedup:.2f}{TIMES} as fast on {kind} text" for kind, speedup in log.result.by_kind.items())
    measured = speeds or f"{log.result.speedup:.2f}{TIMES} as fast"
    return f"Decoding with trial {winner.index}'s draft is {measured} as autoregressive decoding, measured on {log.header.cpu}."


def tiles(log: SearchLog) -> list[Tile]:
    """Returns the highlighted numbers."""
    trial = facts.shown(log)
    found: list[Tile] = []
    if trial is not None:
        found.append(_speed_tile(log, trial))
    gain = facts.gain(log)
    if gain is not None:
        found.append(Tile(name="gain over warm starts", value=f"{100 * gain:+.1f}\u00a0%", note="by modelled speed"))
    if trial is not None:
        rate = facts.acceptance_rate(trial, log.header.weights)
        found.append(Tile(name="acceptance rate", value=_percent(rate), note="on calibration texts"))
        found.append(Tile(name="draft cost ratio", value=_number(trial.cost_ratio, 2), note="of an autoregressive step"))
    states = Counter(t.status for t in log.trials)
    parts = ", ".join(f"{states[s]} {s}" for s in (COMPLETED, STOPPED, FAILED) if states[s])
    found.append(Tile(name="trials", value=str(len(log.trials)), note=parts))
    return found


def details(log: SearchLog) -> list[tuple[str, str]]:
    """Returns names and values of the search's model, machine, settings, choice and time."""
    header, trial = log.header, facts.shown(log)
    weights = ", ".join(f"{name} {weight:g}" for name, weight in header.weights.items())
    rows = [
        ("Model", f"{header.model} ({header.num_layers} layers)"),
        ("Machine", f"{header.cpu}, {header.threads} {'thread' if header.threads == 1 else 'threads'}, ONNX Runtime {header.onnxruntime}"),
        ("Budget", f"at most {header.trials} trials, {header.batch} suggested at a time, seed {header.seed}"),
        ("Text weights", weights or "none"),
        ("Own weights of a draft", f"at most {header.draft_memory / 2**20:.1f} MiB" if header.draft_memory else "none"),
        ("Baseline", plain_speed_text(log)),
    ]
    if trial is not None:
        title = "Chosen" if facts.winner(log) is not None else ("Best so far" if log.result is None else "Best candidate")
        rows.append((title, f"trial {trial.index} ({source_title(trial)}): {exit_text(trial)}"))
        rows.append(("Skips", skip_text(trial)))
    rows.append(("Time", time_text(log)))
    return rows


def remark(log: SearchLog) -> str:
    """Returns the remark that the search recorded; empty if it recorded none."""
    return "" if log.result is None else log.result.remark


def best_rows(log: SearchLog) -> list[Row]:
    """Returns the best trials by modelled speed-up, and the winner if it is not among them."""
    winner = facts.winner(log)
    best = facts.ranked(log)[: facts.NUM_BEST]
    if winner is not None and winner not in best:
        best = [*best, winner]
    return [_row(log, trial, chosen=trial is winner) for trial in best]


def failures(log: SearchLog) -> list[tuple[str, str]]:
    """Returns the name and the error of each failed trial."""
    return [(f"Trial {t.index} ({source_title(t)})", t.error or "no error was recorded") for t in facts.failed(log)]


def source_title(trial: Trial) -> str:
    """Returns the name of a trial's source, not escaped."""
    known = source_style(trial.source)
    return trial.source if known.symbol == "cross" else known.title


def exit_text(trial: Trial) -> str:
    """Returns a trial's tuned stopping rule in words."""
    return "no stopping rule was tuned" if trial.stopping is None else f"stopping rule {trial.stopping}"


def plain_speed_text(log: SearchLog) -> str:
    """Returns the modelled and, if finalists were timed, the measured speed of autoregressive decoding."""
    modelled = f"autoregressive decoding, {log.header.plain:.1f} tokens/s modelled"
    measured = [f.plain for f in log.finalists]
    return f"{modelled}, {statistics.median(measured):.1f} tokens/s measured with the finalists" if measured else modelled


def time_text(log: SearchLog) -> str:
    """Returns how long the parts of the search took."""
    if log.result is None:
        candidates, suggesting = sum(t.seconds for t in log.trials), sum(t.suggest_seconds for t in log.trials)
        return f"so far: running candidates {_seconds(candidates)}, suggesting candidates {_seconds(suggesting)}"
    spent = log.result.seconds
    names = [*(n for n in _PARTS if n in spent), *(n for n in spent if n not in _PARTS and n != "total")]
    parts = [f"{_PARTS.get(name, name)} {_seconds(spent[name])}" for name in names]
    total = f"{_seconds(spent['total'])} in all" if "total" in spent else ""
    return ": ".join(p for p in (total, ", ".join(parts)) if p) or "not recorded"


def _speed_tile(log: SearchLog, trial: Trial) -> Tile:
    timed = facts.finalist_of(log, trial)
    if timed is None:
        return Tile(name="speed-up", value=f"{facts.speedup_of(trial):.2f}{TIMES}", note="modelled, not timed")
    value = f"{timed.speedup:.2f}{TIMES}"
    kinds = "".join(f", {kind} {speedup:.2f}" for kind, speedup in timed.by_kind.items())
    if timed.interval_95 is None:
        return Tile(name="speed-up", value=value, note=f"measured, {timed.prompts} runs{kinds}")
    low, high = timed.interval_95
    return Tile(name="speed-up", value=value, note=f"measured, 95\u00a0%: {low:.2f} to {high:.2f}{kinds}")


def _row(log: SearchLog, trial: Trial, *, chosen: bool) -> Row:
    timed = facts.finalist_of(log, trial)
    return Row(
        trial=str(trial.index),
        source=source_title(trial),
        speedup=_number(trial.speedup, 3),
        measured=_number(timed.speedup if timed is not None else None, 3),
        cost_ratio=_number(trial.cost_ratio, 3),
        acceptance=_percent(facts.acceptance_rate(trial, log.header.weights)),
        per_round=_number(facts.tokens_per_round(trial, log.header.weights), 2),
        exit=NOTHING if trial.stopping is None else trial.stopping.short(),
        skips=f"{len(trial.skip.attention)} + {len(trial.skip.mlp)}{', int4' if trial.int4 else ''}",
        chosen=chosen,
    )


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}\u00a0%"


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
