"""The `selftest` command."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sstool.cli.main import EXIT_FAILED
from sstool.cli.options import debug_option, json_option

if TYPE_CHECKING:
    from sstool.selftest.rows import SelfTestReport

_COLOURS: Final = {"proven": "green", "failed": "red", "not here": "yellow"}


@click.command(name="selftest")
@click.option("--target", multiple=True, metavar="NAME", help="ort-cpu, ort-cuda or tensorrt; may be repeated.  [default: all]")
@click.option("--shape", metavar="NAME", help="Random model whose speed is measured: llama-2-7b, llama-1b, llama-60m, or none.")
@click.option("--device", type=int, metavar="N", help="GPU to test, counted from 0.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Also write selftest.json and selftest.html there.")
@json_option
@debug_option
def command(target: tuple[str, ...], shape: str | None, device: int | None, out: Path | None, as_json: bool) -> None:
    """Test every target on this machine with random models.

    Each row says what is proven, what failed, or why it cannot be tested here. Where a target's device is
    missing, its graphs run on the processor. Exits with 1 if something failed.
    """
    from ssruntime.checks import check_choice, check_int
    from sstool.cli.progress import status_line
    from sstool.selftest.models import SHAPES
    from sstool.selftest.page import write_pages
    from sstool.selftest.run import SelfTestOptions, run_selftest
    from sstool.targets.registry import GRAPH_TARGETS

    if device is not None:
        check_int("device", device, 0)
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)  # read when CUDA is first used
    for name in target:
        check_choice("target", name, tuple(GRAPH_TARGETS))
    if shape is not None:
        check_choice("shape", shape, (*SHAPES, "none"))
    with status_line() as say:
        report = run_selftest(SelfTestOptions(targets=target, shape=shape, progress=say))
    if out is not None:
        write_pages(report, out)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _print(report)
    if not report.ok:
        click.get_current_context().exit(EXIT_FAILED)


def _print(report: SelfTestReport) -> None:
    for name, value in report.environment.items():
        click.echo(f"{name:<16}{'-' if value is None else value}")
    last = ""
    for row in report.rows:
        if row.target != last:
            click.echo(f"\n{row.target}")
            last = row.target
        state = click.style(f"{row.state:<9}", fg=_COLOURS[row.state], bold=True)
        figure = f": {row.figure}" if row.figure else ""
        bar = f" (bar: {row.bar})" if row.bar else ""
        why = f"; {row.why}" if row.why else ""
        click.echo(f"  {state} {row.check}{figure}{bar}{why}")
    counts = {state: sum(row.state == state for row in report.rows) for state in _COLOURS}
    click.echo(f"\n{', '.join(f'{count} {state}' for state, count in counts.items())}, in {report.seconds:.0f} s")
