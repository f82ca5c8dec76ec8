"""Stores the finished comparisons of a long check on disk, so that an interrupted check can be resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ssruntime.errors import SelfSpecError
from ssruntime.strict_reader import parse_json, read_record
from sstool.jsonl_log import JsonlLog, whole_lines
from sstool.validation.lossless import Comparison, Difference, LogitRows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CaseOutcome:
    """The result of one comparison.

    Attributes:
        verdict: `yes`, `near_tie` or `no`.
        tokens: number of compared positions.
        near_ties: number of differences that are near ties.
        difference: the difference with verdict `no` if there is one, else the first near tie, else None.
        logit_rows: number of rows of logits that were compared, in runs with the same tokens.
        logit_rows_differing: number of these rows of which at least one bit differs.
    """

    verdict: str
    tokens: int
    near_ties: int
    difference: Difference | None
    logit_rows: int
    logit_rows_differing: int

    @classmethod
    def of(cls, comparison: Comparison, rows: LogitRows) -> CaseOutcome:
        """Returns the outcome of a comparison of tokens, and of rows of logits."""
        worst = [d for d in comparison.differences if d.verdict == "no"] or list(comparison.differences)
        return cls(
            verdict=comparison.verdict,
            tokens=comparison.tokens,
            near_ties=comparison.num_near_ties,
            difference=worst[0] if worst else None,
            logit_rows=rows.compared,
            logit_rows_differing=rows.differing,
        )


class Journal:
    """Outcomes by unit (one comparison), each appended to a file of JSON Lines as soon as it is known.

    A damaged line, as a kill leaves it, is dropped, and its unit is run again.
    """

    def __init__(self, path: Path | None) -> None:
        """Opens a journal and reads the outcomes it holds; with None it is kept in memory only."""
        self._path = path
        self._outcomes: dict[str, CaseOutcome] = {}
        self._log: JsonlLog | None = None
        if path is not None:
            self._open(path)

    def get(self, unit: str) -> CaseOutcome | None:
        """Returns the outcome of a unit; None if the unit is not finished."""
        return self._outcomes.get(unit)

    def add(self, unit: str, outcome: CaseOutcome) -> None:
        """Stores the outcome of a unit."""
        self._outcomes[unit] = outcome
        if self._log is not None:
            try:
                self._log.append({"unit": unit, **asdict(outcome)})
            except OSError as err:
                logger.warning("the progress of the check is no longer saved: %s", err)
                self._log = None

    def close(self, *, done: bool) -> None:
        """Closes the file, and removes it if the check is done."""
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()
        if done and self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._log = JsonlLog(path, kept=self._read(path))
        except OSError as err:
            logger.warning("the progress of the check cannot be saved, so an interrupted check starts over: %s", err)

    def _read(self, path: Path) -> list[bytes]:
        """Reads the stored outcomes; returns the lines that are complete and valid."""
        valid = []
        for line in whole_lines(path.read_bytes()) if path.exists() else ():
            try:
                data = parse_json(line)
                unit = data.pop("unit")
                self._outcomes[unit] = read_record(CaseOutcome, data, where=str(path), error=SelfSpecError)
            except (ValueError, KeyError, AttributeError, TypeError, SelfSpecError):
                continue
            valid.append(line)
        return valid


def journal_name(parts: Mapping[str, object]) -> str:
    """Returns the file name of the journal of a check that `parts` (JSON values) describe completely."""
    return f"{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]}.jsonl"
