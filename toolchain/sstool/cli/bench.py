"""`sstool bench`: measures autoregressive and self-speculative decoding on the same prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sstool.cli.main import EXIT_FAILED
from sstool.cli.options import DecodingOptions, artifact_argument, debug_option, decoding_options, json_option

if TYPE_CHECKING:
    from rich.table import Table

    from sstool.bench import BenchReport, ModeReport, PeerReport, Spread
    from sstool.bench.report import IdenticalCounts

_PEERS: Final = "hf, hf-lookup, genai, genai-ngram, openvino, openvino-lookup, llamacpp"


@click.command(name="bench")
@artifact_argument
@click.option("--prompts", required=True, metavar="FILE", type=click.Path(path_type=Path), help='JSON Lines file of {"id"?, "prompt"}.')
@click.option("--modes", metavar="M,M", help="Modes to measure: plain, speculative, ngram, auto.  [default: plain and the artifact's]")
@click.option("--repeat", type=int, default=3, show_default=True, metavar="N", help="Runs of each prompt in each mode.")
@click.option("--against", metavar="P,P", help=f"Other engines to compare with: {_PEERS}. Needs --model.")
@click.option("--model", metavar="DIR", type=click.Path(path_type=Path), help="Folder of the artifact's checkpoint, for --against.")
@decoding_options
@json_option
@debug_option
def command(
    folder: Path,
    prompts: Path,
    modes: str | None,
    repeat: int,
    against: str | None,
    model: Path | None,
    decoding: DecodingOptions,
    as_json: bool,
) -> None:
    """Compare autoregressive decoding with other modes.

    After a warm-up, each prompt is run in all modes, in alternating order. Exits with 1 if the tokens of a
    prompt differ from autoregressive decoding (mode plain); near ties do not count.

    Engines named with --against take turns too, each in its own process with the same checkpoint, threads and
    precision, and end-of-sequence tokens are suppressed in all, so that they decode as many tokens. One that
    is not installed is a row that says how to install it.
    """
    if (against is None) != (model is None):
        raise click.UsageError("--against and --model belong together: other engines load the checkpoint itself")
    if modes is not None and decoding.config["mode"] is not None:
        raise click.UsageError("--mode and --modes exclude each other: here --mode M is short for --modes M")
    from sstool.bench import BenchOptions, open_peers, run_bench
    from sstool.bench.peers import parse_peers
    from sstool.cli.progress import progress_bar
    from sstool.prompts import read_prompts

    config = decoding.generation_config()
    named = modes if modes is not None else config.mode
    options = BenchOptions(modes=None if named is None else tuple(m.strip() for m in named.split(",")), repeat=repeat)
    records = read_prompts(prompts)
    names = () if against is None else parse_peers(against)
    with (
        decoding.open_engine(folder, prefix_cache=0) as engine,  # the same prompt is measured again and again
        open_peers(engine, names, model or Path()) as peers,
        progress_bar("bench") as advance,
    ):
        report = run_bench(engine, records, config, options, peers=peers, on_progress=advance)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _print_report(report)
    if report.num_differing:
        click.get_current_context().exit(EXIT_FAILED)


def _rows(*, brief: bool) -> dict[str, Callable[[ModeReport], str]]:
    """Returns the rows of the table; brief ones hold medians only."""
    return {
        "tokens/s": lambda run: _spread(run.tokens_per_second, 1, brief=brief),
        "x plain": lambda run: _spread(run.ratio_to_plain, 2, brief=brief),
        "x plain, 95 %": lambda run: "-" if run.ratio_interval_95 is None else "{:.2f} to {:.2f}".format(*run.ratio_interval_95),
        "acceptance rate": lambda run: _number(run.acceptance_rate),
        "tokens per round": lambda run: _number(run.tokens_per_round),
        "host overhead": lambda run: "-" if run.host_overhead is None else f"{run.host_overhead:.1%}",
        "identical": lambda run: _identical(run.identical),
        "runs": lambda run: str(run.prompts) + (f" ({run.refused} refused)" if run.refused else ""),
    }


_MOST_WIDE: Final = 2
"""Most modes whose minimum and maximum fit beside each other."""


def _print_report(report: BenchReport) -> None:
    from rich.console import Console

    console = Console()
    brief = len(report.runs) > _MOST_WIDE
    console.print(_table(report, brief=brief))
    if report.peers:
        console.print(_peer_table(report))
        for peer in report.peers:
            what = f"version {peer.version}" if peer.missing is None else peer.missing
            console.print(f"{peer.name}: {what}", style="dim", soft_wrap=True, highlight=False, markup=False)
    how = report.settings
    sampled = "greedy" if how["temperature"] == 0 else f"temperature {how['temperature']:g}, top-p {how['top_p']:g}, {how['sampling']}"
    spread = "median" if brief else "median (minimum to maximum)"
    setting = f"{sampled}; {how['max_new_tokens']} tokens, {how['repeat']} repeats, seed {how['seed']}; {spread}"
    console.print(setting, style="dim", soft_wrap=True, highlight=False)


def _table(report: BenchReport, *, brief: bool) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    table.add_column("")
    for run in report.runs:
        table.add_column(run.mode, justify="right", no_wrap=True)
    for name, cell in _rows(brief=brief).items():
        cells = [cell(run) for run in report.runs]
        if any(c != "-" for c in cells):
            table.add_row(name, *cells)
    return table


def _peer_table(report: BenchReport) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name in ("", "tokens/s", f"{report.runs[-1].mode} / this (95 %)", "first token", "same text"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for peer in report.peers:
        if peer.missing is None:
            table.add_row(peer.name, *_peer_cells(peer))
    return table


def _peer_cells(peer: PeerReport) -> list[str]:
    interval = "" if peer.ours_over_this_95 is None else " ({:.2f} to {:.2f})".format(*peer.ours_over_this_95)
    first = "-" if peer.prefill_s is None else f"{1000 * peer.prefill_s:.0f} ms"
    same = "-" if peer.same_text is None else str(peer.same_text)
    return [_spread(peer.tokens_per_second, 1, brief=True), _spread(peer.ours_over_this, 2, brief=True) + interval, first, same]


def _spread(spread: Spread | None, digits: int, *, brief: bool) -> str:
    if spread is None:
        return "-"
    median = f"{spread.median:.{digits}f}"
    return median if brief else f"{median} ({spread.min:.{digits}f} to {spread.max:.{digits}f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _identical(counts: IdenticalCounts | None) -> str:
    if counts is None:
        return "-"
    parts = [f"{counts.yes} of {counts.yes + counts.near_tie + counts.no}"]
    parts += [f"{counts.near_tie} near ties"] if counts.near_tie else []
    parts += [f"{counts.no} DIFFER"] if counts.no else []
    return ", ".join(parts)
