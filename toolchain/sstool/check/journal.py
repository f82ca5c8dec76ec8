"""The finished comparisons of a long check, kept on disk so that an interrupted one goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssruntime.errors import SelfSpecError
from ssruntime.strict_reader import read_record
from sstool.jsonl_log import JsonlLog, whole_lines
from sstool.validation.lossless import Difference

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CaseOutcome:
    """One comparison's result.

    Attributes:
        verdict: `yes`, `near_tie` or `no`.
        tokens: positions compared.
        near_ties: differences that are near ties.
        difference: the `no` if there is one, else the first near tie.
    """

    verdict: str
    tokens: int
    near_ties: int
    difference: dict[str, Any] | None

    @classmethod
    def of(cls, verdict: str, tokens: int, differences: tuple[Difference, ...]) -> CaseOutcome:
        """Returns the outcome of a comparison."""
        worst = [d for d in differences if d.verdict == "no"] or list(differences)
        return cls(
            verdict=verdict,
            tokens=tokens,
            near_ties=sum(d.verdict == "near_tie" for d in differences),
            difference=asdict(worst[0]) if worst else None,
        )


class Journal:
    """Outcomes by unit, appended to a file of JSON lines as they come. Without a path it keeps them in memory only.

    A line that is damaged (a process was killed while it wrote) is dropped, and its unit is run again.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._outcomes: dict[str, CaseOutcome] = {}
        self._log: JsonlLog | None = None
        if path is not None:
            self._open(path)

    def get(self, unit: str) -> CaseOutcome | None:
        """Returns a unit's outcome; None where it was not finished."""
        return self._outcomes.get(unit)

    def add(self, unit: str, outcome: CaseOutcome) -> None:
        """Keeps a unit's outcome."""
        self._outcomes[unit] = outcome
        if self._log is not None:
            try:
                self._log.append({"unit": unit, **asdict(outcome)})
            except OSError as err:
                logger.warning("the check's progress is no longer kept: %s", err)
                self._log = None

    def close(self, *, done: bool) -> None:
        """Closes the file; removes it if the check is done."""
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
            logger.warning("the check's progress cannot be kept, so it could not be resumed: %s", err)

    def _read(self, path: Path) -> list[bytes]:
        """Reads the outcomes that are there; returns the lines that are whole and sound."""
        sound = []
        for line in whole_lines(path.read_bytes()) if path.exists() else ():
            try:
                data = json.loads(line)
                unit = data.pop("unit")
                self._outcomes[unit] = read_record(CaseOutcome, data, where=str(path), error=SelfSpecError)
            except (ValueError, KeyError, AttributeError, TypeError, SelfSpecError):
                continue
            sound.append(line)
        return sound


def journal_name(parts: Mapping[str, object]) -> str:
    """Returns the file name for a check that `parts` (JSON values) describe wholly."""
    return f"{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]}.jsonl"
