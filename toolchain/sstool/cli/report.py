"""`sstool report`: writes the page of a search from the search's records."""

from __future__ import annotations

from pathlib import Path

import click

from sstool.cli.options import artifact_argument, debug_option


@click.command(name="report")
@artifact_argument
@debug_option
def command(folder: Path) -> None:
    """(Re)write report.html of a search.

    DIR is the folder of an artifact, which gets search/report.html, or a folder that holds trials.jsonl. The
    search may still be running. The page is a single file that needs no network.
    """
    from sstool.search.log.read import find_search
    from sstool.search_report import write_report

    click.echo(write_report(find_search(folder)))
