"""What a self-test reports: one row for each target and check."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final, Literal

State = Literal["proven", "failed", "not here"]

PROVEN: Final[State] = "proven"
FAILED: Final[State] = "failed"
NOT_HERE: Final[State] = "not here"


@dataclass(frozen=True, kw_only=True)
class Row:
    """The outcome of one check of one target.

    Attributes:
        target: execution target.
        check: what was checked.
        state: `proven`, `failed` or `not here`.
        figure: what was measured, in a few words; None if nothing was.
        bar: what the figure had to reach; None if it is only reported.
        why: reason of a failure, or of why the check could not run here; remark of a proof.
    """

    target: str
    check: str
    state: State
    figure: str | None = None
    bar: str | None = None
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class SelfTestReport:
    """The machine, and the rows of all targets.

    Attributes:
        environment: the machine and the versions, by name.
        rows: rows in the order in which they were checked.
        seconds: time that the test took.
    """

    environment: dict[str, str | int | float | None]
    rows: tuple[Row, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(row.state != FAILED for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        return dataclasses.asdict(self)


@dataclass(slots=True)
class Rows:
    """Collects the rows of one target."""

    target: str
    found: list[Row] = field(default_factory=list)

    def judge(self, check: str, figure: str, *, holds: bool, bar: str, why: str | None = None) -> None:
        """Adds a row that is proven if its bar is reached."""
        state = PROVEN if holds else FAILED
        self.found.append(Row(target=self.target, check=check, state=state, figure=figure, bar=bar, why=why))

    def tell(self, check: str, figure: str, why: str | None = None) -> None:
        """Adds a row whose figure is only reported."""
        self.found.append(Row(target=self.target, check=check, state=PROVEN, figure=figure, why=why))

    def fail(self, check: str, why: str) -> None:
        """Adds a row of a check that broke off."""
        self.found.append(Row(target=self.target, check=check, state=FAILED, why=why))

    def absent(self, check: str, why: str) -> None:
        """Adds a row of a check that cannot run on this machine."""
        self.found.append(Row(target=self.target, check=check, state=NOT_HERE, why=why))
