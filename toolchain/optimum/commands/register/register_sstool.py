"""`optimum-cli export sstool`: found by optimum in the namespace package `optimum.commands.register`.

Every call of optimum-cli imports this file, so it imports what it needs only when that is needed.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

if TYPE_CHECKING:
    import click

_OUT: Final = "out"


class SstoolExportCommand(BaseOptimumCLICommand):  # type: ignore[misc] # optimum has no type information
    """Exports a checkpoint with the options of `sstool export`; the artifact's folder comes last."""

    COMMAND = CommandInfo(name="sstool", help="Export a decoder to a self-speculative artifact (sstool).")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Adds the options of `sstool export` to a parser."""
        for option in _options():
            names = ["-m", *option.opts] if "--model" in option.opts else list(option.opts)
            text = None if option.help is None else option.help.replace("%", "%%")
            if option.is_flag:
                parser.add_argument(*names, dest=option.name, action="store_true", help=text)
            else:
                parser.add_argument(*names, dest=option.name, metavar=option.metavar or "VALUE", help=text)
        parser.add_argument("output", metavar="DIR", help="Folder of the artifact.")

    def run(self) -> None:
        """Runs `sstool export`; ends the process with its exit code if it fails."""
        from sstool.cli.main import run

        arguments = ["export", "--out", self.args.output]
        for option in _options():
            value = getattr(self.args, str(option.name))
            if option.is_flag:
                arguments += [option.opts[0]] if value else []
            elif value is not None:
                arguments += [option.opts[0], value]
        code = run(arguments)
        if code:
            sys.exit(code)


def _options() -> list[click.Option]:
    """Returns the options of `sstool export`, but for the artifact's folder."""
    import click

    from sstool.cli.export import command

    return [option for option in command.params if isinstance(option, click.Option) and option.name != _OUT and not option.hidden]


REGISTER_COMMANDS: Final = [(SstoolExportCommand, ExportCommand)]
