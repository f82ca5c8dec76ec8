"""The result of a check as typed records, and as the JSON object that `check --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Literal

from sstool.bench.environment import Environment

Status = Literal["passed", "failed", "skipped", "not measured", "reported"]
"""`reported`: measured, but without a limit that applies (memory of a small model)."""

TOKENS_PER_NEAR_TIE: Final = 10_000
"""More near ties than one in this many tokens mean that passes of some query length compute wrong logits."""


@dataclass(frozen=True, kw_only=True)
class CheckSection:
    """The outcome of one part of a check.

    Attributes:
        status: outcome of the part; `failed` fails the whole check.
        reason: why the part failed or was not run, in one line.
        details: figures of the part, as JSON values.
    """

    status: Status
    reason: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Returns status, reason and details as one flat object."""
        return {"status": self.status, **({"reason": self.reason} if self.reason else {}), **self.details}


@dataclass(frozen=True, kw_only=True)
class FirstDifference:
    """The difference to report: the first one with verdict `no` if there is one, else the first near tie."""

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
    """Speculative compared with autoregressive decoding (mode `plain`) over many settings.

    Attributes:
        comparisons: number of compared runs: yes + near_tie + no.
        yes: number of runs with the tokens of plain decoding.
        near_tie: number of runs with the tokens of plain decoding except for near ties.
        no: number of runs with other tokens.
        tokens: number of compared positions.
        near_ties: number of near ties; several in one run all count.
        logit_rows: number of rows of logits that were compared, in runs with the tokens of plain decoding.
        logit_rows_differing: number of these rows of which at least one bit differs.
        bits_equal: whether the kernels of this machine pass the bit test, so that no row may differ.
        refused: number of prompts that are empty or do not fit the context.
        resumed: number of comparisons that an interrupted check had already finished.
        first_difference: the difference to report; None if there is none.
        near_ties_allowed_per_10k: largest number of near ties per 10,000 tokens.
    """

    comparisons: int
    yes: int
    near_tie: int
    no: int
    tokens: int
    near_ties: int
    logit_rows: int
    logit_rows_differing: int
    bits_equal: bool
    refused: int
    resumed: int
    first_difference: FirstDifference | None
    near_ties_allowed_per_10k: float = 1.0

    @property
    def near_ties_per_10k(self) -> float:
        """The number of near ties per 10,000 tokens."""
        return self.near_ties * TOKENS_PER_NEAR_TIE / self.tokens if self.tokens else 0.0

    @property
    def reason(self) -> str | None:
        """Why the check fails, or None if it passes.

        It fails if a run has other tokens, if bits differ where they must not, if there is more than one near
        tie per 10,000 tokens in fp32 (a single one is always allowed), or if nothing was compared. In 16
        bits, the number of allowed near ties grows with their tolerance.
        """
        if self.no:
            return f"{self.no} of {self.comparisons} runs differ from plain decoding"
        if self.bits_equal and self.logit_rows_differing:
            return f"{self.logit_rows_differing} of {self.logit_rows} rows of logits differ in bits from plain decoding"
        if self.near_ties > max(1, int(self.near_ties_allowed_per_10k * self.tokens / TOKENS_PER_NEAR_TIE)):
            allowed = f"{self.near_ties_allowed_per_10k:.0f}" if self.near_ties_allowed_per_10k > 1 else "one"
            return f"{self.near_ties} near ties in {self.tokens} tokens; the limit is {allowed} in {TOKENS_PER_NEAR_TIE}"
        if not self.comparisons:
            return "no prompt could be run"
        return None

    def section(self) -> CheckSection:
        """Returns the report as a section of the check."""
        details = {**asdict(self), "near_ties_per_10k": self.near_ties_per_10k}
        return CheckSection(status="failed" if self.reason else "passed", reason=self.reason, details=details)


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The whole result of `sstool check`.

    Attributes:
        environment: machine, versions and threads; None if no engine was opened.
        full: whether the full losslessness check was run.
        digests: digests of all files, compared with the manifest.
        parity: logits of the verify engine, compared with the checkpoint's.
        bits: logits of every kind of pass, compared to the bit with those of plain decoding.
        losslessness: tokens of speculative decoding, compared with plain decoding's.
        memory: memory that a draft and a second process add.
    """

    environment: Environment | None
    full: bool
    digests: CheckSection
    parity: CheckSection
    bits: CheckSection
    losslessness: CheckSection
    memory: CheckSection

    @property
    def sections(self) -> dict[str, CheckSection]:
        """The sections by name, in the order of the report."""
        return {
            "digests": self.digests,
            "parity": self.parity,
            "bits": self.bits,
            "losslessness": self.losslessness,
            "memory": self.memory,
        }

    @property
    def ok(self) -> bool:
        """Whether no section failed."""
        return all(s.status != "failed" for s in self.sections.values())

    def to_json(self) -> dict[str, object]:
        """Returns the object that `check --json` prints."""
        return {
            "ok": self.ok,
            "full": self.full,
            "environment": self.environment.to_json() if self.environment else None,
            **{name: section.to_json() for name, section in self.sections.items()},
        }
