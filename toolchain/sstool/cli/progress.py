"""Progress bars and status lines on stderr if that is a terminal; no output otherwise."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

Advance: TypeAlias = Callable[[int, int, str], None]
"""Called with the number of finished steps, the total number, and the name of the next step."""


@contextlib.contextmanager
def progress_bar(title: str, *, shown: bool = True) -> Iterator[Advance]:
    """Shows a bar while the block runs.

    Args:
        title: name of the work.
        shown: False for no bar even on a terminal, as for a command that streams its output to the terminal.

    Yields:
        The function to call before each step.
    """
    if not shown or not sys.stderr.isatty():
        yield _be_silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None)

        def advance(done: int, total: int, what: str) -> None:
            bars.update(task, completed=done, total=total, description=f"{title} {what}".strip())

        yield advance


def _say_nothing(_step: str) -> None:
    return


def _be_silent(_done: int, _total: int, _what: str) -> None:
    return


@contextlib.contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Shows the current step of a block if stderr is a terminal.

    Yields:
        The function to call with the name of each step when it begins.
    """
    if not sys.stderr.isatty():
        yield _say_nothing
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update
