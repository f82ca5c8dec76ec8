"""Writes the log of a search: one line per record, each written out whole before the next one begins."""

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
from ssruntime.strict_reader import parse_json
from sstool.jsonl_log import JsonlLog, whole_lines
from sstool.search.log.read import SearchLog, read_search
from sstool.search.log.records import KIND_OF, TRIALS, Finalist, Header, Result, Sensitivity, Trial

_ENDING = frozenset({KIND_OF[Finalist], KIND_OF[Result]})


class SearchWriter:
    """Appends records to `trials.jsonl`; use it in a `with` statement."""

    def __init__(self, folder: Path, header: Header, *, resume: bool) -> None:
        """Begins a log, or continues that of an interrupted search.

        Args:
            folder: work folder of the search, which exists.
            header: header of this search.
            resume: whether to continue the folder's log, if it has one.

        Raises:
            RecipeError: if the log to continue is damaged, or is of another model or other settings.
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
        """Appends a record.

        Raises:
            OSError: if the record cannot be written.
        """
        self._log.append({"kind": KIND_OF[type(record)], **dataclasses.asdict(record)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._log.close()


def check_resumable(folder: Path, known: Mapping[str, object]) -> Header | None:
    """Returns the header of the log to resume; None without a log, or if its first line is incomplete.

    It is called before any work is done, so it compares only the fields that are known then, and leaves the
    log as it is.

    Args:
        folder: work folder of the search.
        known: fields of this search's header that are known (see `search_identity`).

    Raises:
        RecipeError: if the log is damaged, or is of another model or other settings.
    """
    path = folder / TRIALS
    first, line_break, _ = path.read_bytes().partition(b"\n") if path.exists() else (b"", b"", b"")
    if not line_break:
        return None
    # These fields are compared first: for the log of another model, any other message would mislead.
    with contextlib.suppress(ValueError, TypeError, KeyError):
        found = parse_json(first)
        _check_same({name: found[name] for name in known}, known, path)
    log = read_search(folder)
    if [trial.index for trial in log.trials] != list(range(len(log.trials))):
        raise RecipeError(f"{path}: trials are missing", "restore the file from a backup, or search again without --resume")
    return log.header


def _check_same(found: Mapping[str, object], wanted: Mapping[str, object], path: Path) -> None:
    """Refuses to mix the trials of two searches: everything that trials depend on must be unchanged."""
    for name, now in wanted.items():
        if name not in ("trials", "model") and found[name] != now:
            raise RecipeError(
                f"{path} belongs to another search: {name} was {found[name]!r}, and is {now!r} now",
                "search again without --resume, or with the model and settings that it began with",
            )


def _before_the_end(lines: list[bytes]) -> list[bytes]:
    """Returns the lines before an earlier run's finalists and result; the finalists are timed again."""
    return list(itertools.takewhile(lambda line: json.loads(line)["kind"] not in _ENDING, lines))
