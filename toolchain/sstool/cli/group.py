"""The command group: it imports a command's module only when that command runs, to keep `--help` fast."""

from __future__ import annotations

import importlib
from typing import Final

import click

from sstool.cli.options import debug_option

COMMANDS: Final = {
    "export": "Make an artifact from a checkpoint.",
    "search": "Find the draft: what it skips, and what it copies in int4.",
    "generate": "Complete a prompt, or a file of prompts.",
    "serve": "Serve an artifact to clients of OpenAI's API.",
    "bench": "Compare autoregressive decoding with other modes.",
    "bench-serve": "Measure any server with OpenAI's API under load.",
    "check": "Check files, parity, losslessness and memory of an artifact.",
    "inspect": "Show the content of an artifact.",
    "report": "(Re)write report.html of a search.",
    "selftest": "Test every target on this machine with random models.",
}
"""Each command with the first sentence of its help, repeated here so that the list imports no command."""


class LazyGroup(click.Group):
    """A group whose commands are in modules of the same names, with `_` for `-`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of the commands in the order of their typical use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports and returns one command; None if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"sstool.cli.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from ssruntime.version import version

        click.echo(f"sstool {version()}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version.")
@debug_option
def cli() -> None:
    """Lossless self-speculative decoding: export a checkpoint, then generate the same text faster."""
