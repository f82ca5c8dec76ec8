"""A search's log as it grows: one line a record, each written out whole before the next begins."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from ssruntime.errors import RecipeError
from sstool.jsonl_log import JsonlLog, whole_lines
from sstool.search.log.read import SearchLog, read_search
from sstool.search.log.records import HEADER_KIND, TRIALS, Finalist, Header, Result, Sensitivity, Trial

_KIND_OF = {Header: HEADER_KIND, Sensitivity: "influence", Trial: "trial", Finalist: "finalist", Result: "result"}

_ENDING = frozenset({_KIND_OF[Finalist], _KIND_OF[Result]})


class SearchWriter:
    """Appends to `trials.jsonl`; to be used in a `with` statement."""

    def __init__(self, folder: Path, header: Header, *, resume: bool) -> None:
        """Begins a log, or takes up one that was cut short.

        Args:
            folder: exists.
            header: what the search is of.
            resume: go on with the log that is there, if one is.

        Raises:
            RecipeError: if the log that is there is damaged, or of another model or other settings.
        """
        path = folder / TRIALS
        self.earlier: SearchLog | None = None
        lines = whole_lines(path.read_bytes()) if resume and path.exists() else []
        if lines:
            self.earlier = read_search(folder)
            _check_same(dataclasses.asdict(self.earlier.header), dataclasses.asdict(header), path)
            self._log = JsonlLog(path, kept=_before_the_end(lines))
        else:
            self._log = JsonlLog(path)
            self.write(header)

    def write(self, record: Header | Sensitivity | Trial | Finalist | Result) -> None:
        """Appends a record. Raises OSError if the disk refuses."""
        self._log.append({"kind": _KIND_OF[type(record)], **dataclasses.asdict(record)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._log.close()


def check_resumable(folder: Path, known: Mapping[str, object]) -> Header | None:
    """Refuses to go on with a log that differs in what is known before any work is done, and leaves it as it is.

    Args:
        folder: of the search.
        known: fields of the header.

    Returns:
        The log's header; None if there is no log with one.

    Raises:
        RecipeError: if the log is damaged, or of another model or other settings.
    """
    path = folder / TRIALS
    if not path.exists() or not path.read_bytes().count(b"\n"):
        return None
    first = path.read_bytes().partition(b"\n")[0]
    # The model is looked at first: of another one's log, nothing else would make sense.
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        found = json.loads(first)
        _check_same({name: found[name] for name in known}, known, path)
    log = read_search(folder)
    if [trial.index for trial in log.trials] != list(range(len(log.trials))):
        raise RecipeError(f"{path}: trials are missing", "take the file from a backup, or search anew, without --resume")
    return log.header


def _check_same(found: Mapping[str, object], wanted: Mapping[str, object], path: Path) -> None:
    """Refuses to mix trials: whatever they depend on must be what it was."""
    for name, now in wanted.items():
        if name not in ("trials", "model") and found[name] != now:
            raise RecipeError(
                f"{path} is of another search: {name} was {found[name]!r}, and is {now!r} now",
                "search anew, without --resume, or with the model and settings that it was begun with",
            )


def _before_the_end(lines: list[bytes]) -> list[bytes]:
    """Returns the lines before the finalists and the result of an earlier run, whose finalists are timed again."""
    return list(itertools.takewhile(lambda line: json.loads(line)["kind"] not in _ENDING, lines))
