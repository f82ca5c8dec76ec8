"""What options that are accepted anywhere on the command line have set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RunState:
    """The state of one run of `sstool`.

    Attributes:
        debug: show a traceback on errors.
    """

    debug: bool = False
