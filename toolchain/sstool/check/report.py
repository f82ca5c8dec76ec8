"""The result of a check as typed records, and as the JSON object that `check --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Literal

from sstool.bench.environment import Environment

Status = Literal["passed", "failed", "skipped", "not measured", "reported"]
"""`reported`: measured, but not judged (memory of a small model)."""

TOKENS_PER_NEAR_TIE: Final = 10_000
"""More near ties than one in so many tokens mean that some width computes something else."""


@dataclass(frozen=True, kw_only=True)
class CheckSection:
    """The outcome of one part of a check.

    Attributes:
        status: how it went; `failed` fails the check.
        reason: why it failed or was left out, in one line.
        details: numbers, JSON-ready.
    """

    status: Status
    reason: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Returns status and reason, and the details beside them."""
        return {"status": self.status, **({"reason": self.reason} if self.reason else {}), **self.details}


@dataclass(frozen=True, kw_only=True)
class FirstDifference:
    """Where speculative and plain decoding first differed: the first `no` if there is one, else the first near tie."""

    file: str
    id: str
    case: str
    index: int
    run_token: int | None
    plain_token: int | None
    verdict: str
    reason: str
    gap: float | None


@dataclass(frozen=True, kw_only=True)
class LosslessnessReport:
    """Speculative against plain decoding over many settings.

    Attributes:
        comparisons: runs compared; yes + near_tie + no.
        yes: runs that gave plain's tokens.
        near_tie: runs that gave them but for near ties.
        no: runs that did not.
        tokens: positions compared.
        near_ties: near ties met, several in one run counted each.
        refused: prompts left out, being empty or longer than the context.
        resumed: comparisons taken over from an interrupted check.
        first_difference: None if nothing differed.
    """

    comparisons: int
    yes: int
    near_tie: int
    no: int
    tokens: int
    near_ties: int
    refused: int
    resumed: int
    first_difference: FirstDifference | None

    @property
    def near_ties_per_10k(self) -> float:
        """Near ties in 10,000 tokens."""
        return self.near_ties * TOKENS_PER_NEAR_TIE / self.tokens if self.tokens else 0.0

    @property
    def reason(self) -> str | None:
        """Why it fails, or None: any `no`, more near ties than one in 10,000 tokens (one is always allowed), or nothing compared."""
        if self.no:
            return f"{self.no} of {self.comparisons} runs differ from plain decoding"
        if self.near_ties > max(1, self.tokens // TOKENS_PER_NEAR_TIE):
            return f"{self.near_ties} near ties in {self.tokens} tokens: more than one in {TOKENS_PER_NEAR_TIE}"
        if not self.comparisons:
            return "no prompt could be run"
        return None

    def section(self) -> CheckSection:
        """Returns the report as a section."""
        details = {**asdict(self), "near_ties_per_10k": self.near_ties_per_10k}
        return CheckSection(status="failed" if self.reason else "passed", reason=self.reason, details=details)


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All that `sstool check` found.

    Attributes:
        environment: None where no engine was opened.
        full: whether the long form ran.
        digests: every file against the manifest.
        parity: the verify graph against the checkpoint.
        losslessness: speculative against plain decoding.
        memory: what a draft and a second process cost.
    """

    environment: Environment | None
    full: bool
    digests: CheckSection
    parity: CheckSection
    losslessness: CheckSection
    memory: CheckSection

    @property
    def sections(self) -> dict[str, CheckSection]:
        """The parts by name, in the order of the report."""
        return {"digests": self.digests, "parity": self.parity, "losslessness": self.losslessness, "memory": self.memory}

    @property
    def ok(self) -> bool:
        """Whether no part failed."""
        return all(s.status != "failed" for s in self.sections.values())

    def to_json(self) -> dict[str, object]:
        """Returns the object that `check --json` prints."""
        return {
            "ok": self.ok,
            "full": self.full,
            "environment": self.environment.to_json() if self.environment else None,
            **{name: section.to_json() for name, section in self.sections.items()},
        }
