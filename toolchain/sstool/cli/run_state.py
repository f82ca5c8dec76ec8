"""The state that is set by options which are accepted anywhere on the command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RunState:
    """The state of one run of `sstool`.

    Attributes:
        debug: whether errors show a traceback.
    """

    debug: bool = False
