"""`sstool report`: the page of a search, made again from what the search wrote."""

from __future__ import annotations

from pathlib import Path

import click

from sstool.cli.options import artifact_argument, debug_option


@click.command(name="report")
@artifact_argument
@debug_option
def command(folder: Path) -> None:
    """(Re)write report.html of a search.

    DIR is an artifact's folder, which gets search/report.html, or a folder that itself holds trials.jsonl, of a search that may
    still be running. The page is one file that opens without a network.
    """
    from sstool.search.log.read import find_search
    from sstool.search_report import write_report

    click.echo(write_report(find_search(folder)))
