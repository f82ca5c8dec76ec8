"""What the decode loop and the proposer need of an acceptance rule."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ssruntime.backends.base import StepOutput
from ssruntime.proposal import Proposal


class RoundResult(NamedTuple):
    """What a verify pass gave.

    Attributes:
        emitted: the drafted tokens that stand, followed by one more: a correction, or a bonus if none fell or an alternative stood.
        alternative: index of the alternative that stands in place of the chain's token, as the last of the drafted ones; None if none does.
    """

    emitted: list[int]
    alternative: int | None = None


class Acceptance(Protocol):
    """Picks tokens from engine outputs, and decides how much of a draft stands.

    `position` is the absolute position, in the sequence, of the token that the first row of an output decides.
    """

    def sample(self, output: StepOutput, position: int) -> int:
        """Returns plain decoding's token from the first row of a verify pass."""

    def sample_draft(self, output: StepOutput, position: int, max_alternatives: int) -> list[int]:
        """Returns the draft's token from a draft pass, and after it up to so many alternatives, better ones first."""

    def accept(self, output: StepOutput, proposal: Proposal, position: int) -> RoundResult:
        """Returns what of a proposal stands, and the token after it.

        Args:
            output: the rows of the committed token, of the chain, and then of the alternatives.
            proposal: what was verified.
            position: as above.
        """
