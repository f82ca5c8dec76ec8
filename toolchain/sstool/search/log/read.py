"""Reads the log of a search, finished or not, and refuses every inconsistent one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from ssruntime.artifact import MANIFEST
from ssruntime.errors import RecipeError, did_you_mean
from ssruntime.strict_reader import parse_json, read_record
from sstool.jsonl_log import whole_lines
from sstool.search.log.records import (
    COMPLETED,
    FAILED,
    FORMAT,
    KIND_OF,
    LATENCY,
    SEARCH_FOLDER,
    STOPPED,
    TRIALS,
    DraftCosts,
    Finalist,
    Header,
    LatencyTable,
    Result,
    Sensitivity,
    Trial,
)
from sstool.skip_set import check_skip_spec

T = TypeVar("T")

_KINDS: Final = {kind: cls for cls, kind in KIND_OF.items()}
_DAMAGED: Final = "the file is damaged or was not written by sstool; restore it from a backup, or search again"
_NEWER: Final = "read it with the version of sstool that wrote it"
_FOLDER_HINT: Final = "name the folder of an artifact or of a search"


@dataclass(frozen=True, kw_only=True)
class SearchLog:
    """All records of a search.

    Attributes:
        header: what was searched.
        sensitivity: leave-one-out sensitivity of the sublayers; None if it was not measured, or not yet.
        trials: trials by ascending index.
        finalists: finalists in the order in which they were written.
        result: conclusion; None while the search has not ended.
        latency: latency table of the machine; None if its file is missing.
    """

    header: Header
    sensitivity: Sensitivity | None
    trials: tuple[Trial, ...]
    finalists: tuple[Finalist, ...]
    result: Result | None
    latency: LatencyTable | None


def find_search(folder: Path) -> Path:
    """Returns the folder that holds a search: `folder` itself, or the search folder inside an artifact.

    Raises:
        RecipeError: if neither holds a search.
    """
    inner = folder / SEARCH_FOLDER
    for candidate in (folder, inner):
        if (candidate / TRIALS).is_file():
            return candidate
    if not folder.is_dir():
        raise RecipeError(f"there is no folder {folder}", _FOLDER_HINT)
    if (folder / MANIFEST).exists():
        raise RecipeError(f"the artifact {folder} has no search: {inner / TRIALS} is missing", f"run sstool search --artifact {folder}")
    raise RecipeError(f"{folder} holds no search: {TRIALS} is missing", _FOLDER_HINT)


def read_search(folder: Path) -> SearchLog:
    """Returns the content of `trials.jsonl` and, if it exists, of `latency.json`.

    A last line without a line break was cut short by a kill, and is ignored.

    Raises:
        RecipeError: if the folder holds no search, if a file is damaged, inconsistent or of another format,
            or if the two files are of different models.
    """
    path = folder / TRIALS
    found: dict[type[Any], list[Any]] = {cls: [] for cls in _KINDS.values()}
    for where, data in _lines(path):
        kind = data.pop("kind", None)
        cls = _KINDS.get(kind) if isinstance(kind, str) else None
        if cls is None:
            raise RecipeError(f"{where}: unknown kind {kind!r}", f"{did_you_mean(kind, _KINDS)} {_DAMAGED}")
        _check_place(where, cls, found)
        record: Any = _read(cls, data, where)
        _check(record, found, where)
        found[cls].append(record)
    if not found[Header]:
        raise RecipeError(f"{path} holds no search yet: its first line is missing", "search again")
    [header] = found[Header]
    return SearchLog(
        header=header,
        sensitivity=next(iter(found[Sensitivity]), None),
        trials=tuple(sorted(found[Trial], key=lambda t: t.index)),
        finalists=tuple(found[Finalist]),
        result=next(iter(found[Result]), None),
        latency=_own_latency(folder / LATENCY, header),
    )


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place of each complete line, for error messages, and the line as an object."""
    content = _bytes(path)
    if content is None:
        raise RecipeError(f"{path.parent} holds no search: {path.name} is missing", "name the folder of a search")
    for number, line in enumerate(whole_lines(content), start=1):
        where = f"{path}, line {number}"
        yield where, _object(line, where)


def _own_latency(path: Path, header: Header) -> LatencyTable | None:
    """Returns the latency table beside a log, None if there is none; refuses one of another model."""
    table = read_latency(path, header.num_layers)
    if table is not None and table.weights_sha256 != header.weights_sha256:
        raise RecipeError(
            f"{path} was measured with the weights of another model than {TRIALS} beside it", "keep the files of one search together"
        )
    return table


def read_latency(path: Path, num_layers: int) -> LatencyTable | None:
    """Returns the table in a `latency.json`; None if there is no such file.

    Raises:
        RecipeError: if the file is damaged, or its model does not have `num_layers` layers.
    """
    content = _bytes(path)
    if content is None:
        return None
    table = _read(LatencyTable, _object(content, str(path)), str(path))
    if not table.rows:
        _refuse(f"{path}: rows: expected at least one, found none")
    num_lengths = len(table.rows[0].verify)
    for at, row in enumerate(table.rows):
        where = f"{path}: rows[{at}]"
        if len(row.verify) != num_lengths or not row.verify:
            _refuse(f"{where}: verify: expected {max(num_lengths, 1)} query lengths, found {len(row.verify)}")
        if min(row.verify) <= 0:
            _refuse(f"{where}: verify: expected times above 0")
        if (row.int4 is None) != (table.rows[0].int4 is None):
            _refuse(f"{where}: int4: expected costs in all rows or in none")
        _check_draft_costs(row.draft, num_layers, f"{where}.draft")
        if row.int4 is not None:
            _check_draft_costs(row.int4, num_layers, f"{where}.int4")
    return table


def _check_draft_costs(costs: DraftCosts, num_layers: int, where: str) -> None:
    if {len(costs.attention), len(costs.mlp)} != {num_layers}:
        _refuse(f"{where}: expected costs of {num_layers} layers, found {len(costs.attention)} for attention and {len(costs.mlp)} for MLP")
    if min(costs.base, *costs.attention, *costs.mlp) < 0:
        _refuse(f"{where}: expected no time below 0")
    if not len(costs.sizes) == len(costs.first) == len(costs.later) > 0:
        found_lengths = f"{len(costs.sizes)}, {len(costs.first)} and {len(costs.later)}"
        _refuse(f"{where}: sizes, first, later: expected equally many values, at least 1, found {found_lengths}")
    if any(b <= a for a, b in pairwise(costs.sizes)):
        _refuse(f"{where}: sizes: expected ascending values without duplicates")
    if min(*costs.first, *costs.later) <= 0:
        _refuse(f"{where}: first, later: expected factors above 0")


def _bytes(path: Path) -> bytes | None:
    """Returns a file's content; None if there is no such file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        raise RecipeError(f"{path} cannot be read: {err.strerror}", "check the path and its permissions") from err


def _object(content: bytes, where: str) -> dict[str, Any]:
    """Returns a JSON object whose numbers are all finite."""
    try:
        data = parse_json(content, number=_finite)
    except ValueError as err:
        raise RecipeError(f"{where}: not JSON: {err}", _DAMAGED) from err
    if not isinstance(data, dict):
        _refuse(f"{where}: expected an object with keys, found {type(data).__name__}")
    return data


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _read(cls: type[T], data: dict[str, Any], where: str) -> T:
    """Returns the record in an object; another format is reported before any unknown key."""
    if cls in (Header, LatencyTable) and data.get("format") != FORMAT:
        raise RecipeError(f"{where}: expected format {FORMAT}, found {data.get('format')!r}", _NEWER)
    return read_record(cls, data, where=where, error=RecipeError)


def _check_place(where: str, cls: type[Any], found: dict[type[Any], list[Any]]) -> None:
    """Refuses a record of a kind that may not follow the records before it."""
    if (cls is Header) == bool(found[Header]):
        _refuse(f"{where}: expected kind {KIND_OF[Header]!r} on the first line and on no other")
    if found[Result]:
        _refuse(f"{where}: found a line after the result")
    if cls is Sensitivity and found[Sensitivity]:
        _refuse(f"{where}: found a second line of kind {KIND_OF[Sensitivity]!r}")


def _check(record: object, found: dict[type[Any], list[Any]], where: str) -> None:
    """Refuses a record that contradicts itself or the records before it."""
    if isinstance(record, Header):
        if record.num_layers < 1:
            _refuse(f"{where}: num_layers: expected 1 or more, found {record.num_layers}")
        return
    num_layers = found[Header][0].num_layers
    known = {t.index for t in found[Trial]}
    if isinstance(record, Sensitivity):
        if {len(record.attention), len(record.mlp)} != {num_layers}:
            _refuse(f"{where}: expected {num_layers} layers, found {len(record.attention)} for attention and {len(record.mlp)} for MLP")
    elif isinstance(record, Trial):
        _check_trial(record, known, num_layers, where)
    elif isinstance(record, Finalist):
        if record.trial not in known:
            _refuse(f"{where}: trial: there is no trial {record.trial}")
        if record.interval_95 is not None and len(record.interval_95) != 2:
            _refuse(f"{where}: interval_95: expected two numbers, found {len(record.interval_95)}")
    elif isinstance(record, Result):
        for name, index in (("trial", record.trial), ("best_warm_start", record.best_warm_start)):
            if index is not None and index not in known:
                _refuse(f"{where}: {name}: there is no trial {index}")


def _check_trial(trial: Trial, known: set[int], num_layers: int, where: str) -> None:
    if trial.index < 0 or trial.index in known:
        _refuse(f"{where}: trial {trial.index} {'occurs twice' if trial.index in known else 'has an index below 0'}")
    statuses = (COMPLETED, STOPPED, FAILED)
    if trial.status not in statuses:
        raise RecipeError(f"{where}: unknown status {trial.status!r}", f"{did_you_mean(trial.status, statuses)} {_DAMAGED}")
    if trial.status == COMPLETED and trial.speedup is None:
        _refuse(f"{where}: speedup: a completed trial must have one")
    check_skip_spec(trial.spec(), num_layers, where=where)
    if trial.status == COMPLETED and trial.stopping is None:
        _refuse(f"{where}: stopping: a completed trial must have one")
    if trial.timed is not None and min(trial.timed.tokens, trial.timed.measured, trial.timed.modelled) <= 0:
        _refuse(f"{where}: timed: expected tokens and speeds above 0")
    for kind, counts in trial.counts.items():
        if len(counts.kept) != len(counts.reached) or any(k > r for k, r in zip(counts.kept, counts.reached, strict=True)):
            _refuse(f"{where}: counts.{kind}: expected as many values in kept as in reached, none of them larger")
        if not 0 <= counts.accepted <= counts.proposed:
            _refuse(f"{where}: counts.{kind}: expected 0 <= accepted <= proposed, found {counts.accepted} and {counts.proposed}")


def _refuse(message: str) -> NoReturn:
    raise RecipeError(message, _DAMAGED)
