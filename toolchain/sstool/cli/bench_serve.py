"""`sstool bench-serve`: sends load to any server with OpenAI's API and prints what its users would see."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sstool.cli.main import EXIT_FAILED, EXIT_INTERRUPTED, format_error
from sstool.cli.options import debug_option, json_option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sstool.bench_serve import Distribution, LoadReport, RequestRow, ServeReport
    from sstool.bench_serve.run import OnRow

# Repeated from sstool.bench_serve.options, whose import would slow `--help` down. A test keeps both equal.
ENDPOINTS: Final = ("completions", "chat")
_BUSY: Final = 0.7
"""Share of one core from which this tool may limit what it measures."""


def _parse_levels(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        return () if value is None else tuple(int(level) for level in value.split(","))
    except ValueError as err:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 1,4,8") from err


@click.command(name="bench-serve")
@click.argument("url", metavar="URL")
@click.option(
    "--prompts",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help='JSON Lines file of {"id"?, "prompt"} or {"id"?, "messages", "tools"?}; - reads standard input.',
)
@click.option("--endpoint", type=click.Choice(ENDPOINTS), help="API to send prompts to.  [default: chat for messages, else completions]")
@click.option("--model", metavar="NAME", help="Name of the model.  [default: the first that the server lists]")
@click.option("--max-tokens", type=int, default=128, show_default=True, metavar="N", help="Most tokens of an output.")
@click.option("--temperature", type=float, metavar="X", help="Sampling temperature.  [default: the server's]")
@click.option("--top-p", type=float, metavar="P", help="Total probability of the tokens to sample from.  [default: the server's]")
@click.option(
    "--seed", type=int, metavar="S", help="Fixes the arrivals; each request is sent a seed of its own.  [default: random, none sent]"
)
@click.option("--ignore-eos", is_flag=True, help="Ask for outputs that end only at --max-tokens; some servers refuse that.")
@click.option("--rate", type=float, metavar="R", help="Send R requests per second on average, at random times (open loop).")
@click.option(
    "--concurrency",
    metavar="N,N",
    callback=_parse_levels,
    help="Requests in flight; one run for each number. With --rate, the most in flight.  [default: 1; with --rate, no limit]",
)
@click.option("--requests", type=int, metavar="N", help="Requests per run; prompts repeat in order.  [default: one per prompt]")
@click.option("--warmup", type=int, default=0, show_default=True, metavar="N", help="Requests before the first run, not measured.")
@click.option("--timeout", "timeout_s", type=float, default=600.0, show_default=True, metavar="S", help="Seconds that a request may take.")
@click.option("--api-key-env", metavar="VAR", help="Environment variable that holds the API key.")
@click.option("--save", metavar="FILE", type=click.Path(path_type=Path), help="Write a line of JSON per request to this file.")
@json_option
@debug_option
def command(
    url: str,
    prompts: Path,
    endpoint: str | None,
    model: str | None,
    max_tokens: int,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    ignore_eos: bool,
    rate: float | None,
    concurrency: tuple[int, ...],
    requests: int | None,
    warmup: int,
    timeout_s: float,
    api_key_env: str | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Measure any server with OpenAI's API under load.

    URL is the server's root. Requests are streamed. Time to first token ends with the first chunk that has
    text. Inter-token latency is (last token - first token) / (tokens - 1) of each request: a chunk may hold
    several tokens, so the gaps between chunks are reported apart. Tokens are counted by the server (usage);
    if it does not, chunks are counted instead, and the report says so. With --rate, latencies start when a
    request is sent; waiting because of --concurrency is reported apart.

    Exits with 1 if no request succeeded. Ctrl-C ends the load and prints what was measured.
    """
    from sstool.bench_serve import ServeBenchOptions, run_bench_serve
    from sstool.cli.progress import progress_bar
    from sstool.prompts import read_prompts

    options = ServeBenchOptions(
        endpoint=endpoint,  # type: ignore[arg-type]  # click has checked it
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        ignore_eos=ignore_eos,
        rate=rate,
        concurrency=concurrency,
        requests=requests,
        warmup=warmup,
        timeout_s=timeout_s,
    )
    key = _api_key(api_key_env)
    records = read_prompts(prompts)
    with _rows_file(save) as on_row, progress_bar("bench-serve") as advance:
        report = run_bench_serve(url, records, options, api_key=key, on_progress=advance, on_row=on_row)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _print_report(report)
    if report.interrupted:
        click.get_current_context().exit(EXIT_INTERRUPTED)
    if not report.num_ok:
        reason = next(iter(report.runs[0].failures), "none was sent")
        click.echo(format_error(f"no request succeeded: {reason}", "see the counts, and the server's log"), err=True)
        click.get_current_context().exit(EXIT_FAILED)


def _api_key(variable: str | None) -> str | None:
    from ssruntime.errors import ConfigError

    if variable is None:
        return None
    key = os.environ.get(variable, "")
    # The message leaves the name out, in case it is the key itself.
    if not key:
        raise ConfigError(
            "the environment variable that --api-key-env names is not set, or empty", "export VAR=KEY, then pass --api-key-env VAR"
        )
    return key


@contextlib.contextmanager
def _rows_file(path: Path | None) -> Iterator[OnRow | None]:
    """Opens the file of rows before the load, so that a wrong path is noticed at once."""
    if path is None:
        yield None
        return
    from sstool.jsonl_log import JsonlLog

    log = JsonlLog(path)
    try:

        def write(concurrency: int | None, row: RequestRow) -> None:
            log.append({"concurrency": concurrency, **row.to_json()})

        yield write
    finally:
        log.close()


def _print_report(report: ServeReport) -> None:
    from rich.console import Console

    console = Console()
    console.print(_load_table(report))
    if len(report.runs) == 1 and report.num_ok:
        console.print(_time_table(report.runs[0]))
    for note in _notes(report):
        _print_line(console, note)


def _load_table(report: ServeReport) -> Table:
    """Returns a table with a row per run."""
    table = _table("in\nflight", "ok", "tokens/s", "requests/s", "first\ntoken ms", "inter-\ntoken ms", "latency\nms", "accepted")
    for run in report.runs:
        accepted = "-" if run.acceptance is None else _share(run.acceptance.draft_acceptance_rate)
        times = (_median(run.ttft_s), _median(run.itl_s), _median(run.latency_s))
        limit = "no limit" if run.concurrency is None else str(run.concurrency)
        speeds = (f"{run.output_tokens_per_second:.1f}", f"{run.requests_per_second:.2f}")
        table.add_row(limit, str(run.ok), *speeds, *times, accepted)
    return table


def _time_table(run: LoadReport) -> Table:
    """Returns a table with a row per time that was measured in a run."""
    table = _table("ms", "mean", "p50", "p90", "p99")
    rows = {
        "first token": run.ttft_s,
        "inter-token latency": run.itl_s,
        "gap between chunks": run.chunk_gap_s,
        "latency": run.latency_s,
        "wait before sending": run.wait_s,
    }
    for name, times in rows.items():
        if times is not None:
            table.add_row(name, *(f"{1000 * t:.1f}" for t in (times.mean, times.p50, times.p90, times.p99)))
    return table


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 0, 0, 1))
    for at, name in enumerate(columns):
        table.add_column(name, justify="right" if at else "left", no_wrap=True)
    return table


def _notes(report: ServeReport) -> Iterator[str]:
    """Yields what must be known to read the tables."""
    if len(report.runs) > 1:
        yield "times are medians; --json has the percentiles"
    for run in report.runs:
        where = "" if len(report.runs) == 1 else f"{run.concurrency} in flight: "
        for reason, number in run.failures.items():
            yield f"{where}{number} not answered: {reason}"
        if run.cancelled:
            yield f"{where}{run.cancelled} in flight when interrupted, in no figure"
        if run.token_counts in ("chunks", "mixed"):
            yield f"{where}the server counts no tokens: chunks are counted instead" + (" where it does not" * (run.token_counts == "mixed"))
        if run.acceptance is not None:
            length = f"{where}{run.acceptance.mean_acceptance_length:.2f} tokens per verifying pass"
            yield length + (", counted for all clients of the server" if run.acceptance.source == "metrics" else "")
        if run.wall_s > 0 and run.client_cpu_s > _BUSY * run.wall_s:
            yield f"{where}this tool used {run.client_cpu_s / run.wall_s:.0%} of a core, which may slow down what it measures"
    if report.interrupted:
        yield "interrupted"
    settings = report.settings
    arrivals = "" if settings["rate"] is None else f", {settings['rate']:g} requests/s on average, seed {settings['arrival_seed']}"
    sizes = f"{settings['requests']} requests of up to {settings['max_tokens']} tokens"
    cpu = sum(run.client_cpu_s for run in report.runs)
    yield f"{report.model}, {report.endpoint}; {sizes}{arrivals}; this tool's processor time {cpu:.2f} s"


def _print_line(console: Console, text: str) -> None:
    from ssruntime.text.printable import printable

    console.print(printable(text), style="dim", soft_wrap=True, highlight=False, markup=False)


def _median(times: Distribution | None) -> str:
    return "-" if times is None else f"{1000 * times.p50:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
