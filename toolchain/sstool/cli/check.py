"""`sstool check`: checks digests, parity, losslessness and memory; exits with 0 only if no part failed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sstool.cli.main import EXIT_FAILED
from sstool.cli.options import artifact_argument, debug_option, json_option

if TYPE_CHECKING:
    from sstool.check import CheckReport

_COLOURS: Final = {"passed": "green", "failed": "red"}


@click.command(name="check")
@artifact_argument
@click.option("--model", metavar="M", help="Checkpoint of the artifact, to compare its logits with transformers.")
@click.option(
    "--prompts", multiple=True, metavar="FILE", type=click.Path(path_type=Path), help="JSON Lines file to decode; may be repeated."
)
@click.option(
    "--full", is_flag=True, help="Try every stopping rule with drafts of 1 to 12, greedy and sampled. Slow; resumes if interrupted."
)
@json_option
@debug_option
def command(folder: Path, model: str | None, prompts: tuple[Path, ...], full: bool, as_json: bool) -> None:
    """Check files, parity, losslessness and memory of an artifact.

    Exits with 1 if a part fails. A part that cannot be checked is reported as skipped or not measured.
    """
    from sstool.check import CheckOptions, PromptFile, run_check
    from sstool.cli.progress import progress_bar
    from sstool.prompts import read_prompts

    files = [PromptFile(name=str(path), prompts=read_prompts(path)) for path in prompts]
    with progress_bar("check") as advance:
        report = run_check(
            folder,
            CheckOptions(model=model, full=full),
            prompt_files=files,
            on_progress=lambda part, done, total, what: advance(done, total, f"{part} {what}".strip()),
        )
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _print_report(report)
    if not report.ok:
        click.get_current_context().exit(EXIT_FAILED)


def _print_report(report: CheckReport) -> None:
    for name, section in report.sections.items():
        status = click.style(section.status, fg=_COLOURS.get(section.status), bold=True)
        click.echo(f"{name:<14}{status}" + (f": {section.reason}" if section.reason else ""))
        for line in _lines(section.details):
            click.echo(f"    {line}")


def _lines(details: Mapping[str, object]) -> Iterator[str]:
    for key, value in details.items():
        if isinstance(value, Mapping):
            yield f"{key.replace('_', ' ')}: " + ", ".join(f"{k} {_number(v)}" for k, v in value.items())
        elif value is not None:
            yield f"{key.replace('_', ' ')}: {_number(value)}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
