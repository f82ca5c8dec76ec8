"""The interface of acceptance rules, which sample tokens and accept or reject the tokens of a proposal."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ssruntime.backends.base import StepOutput
from ssruntime.proposal import Proposal


class RoundResult(NamedTuple):
    """The tokens that a round emits.

    Attributes:
        emitted: accepted tokens, followed by one token of the target: a correction token after a rejection, a
            bonus token otherwise. An accepted alternative is the last accepted token, and a bonus token
            follows it.
        alternative: index in `Proposal.alternatives` of the accepted alternative; None if none was accepted.
    """

    emitted: list[int]
    alternative: int | None = None


class Acceptance(Protocol):
    """Samples tokens from engine outputs, and decides which tokens of a proposal are accepted.

    In each method, `position` is the absolute position, in the sequence, of the token that the output's first
    row predicts.
    """

    def sample(self, output: StepOutput, position: int) -> int:
        """Returns the token that autoregressive decoding samples from the first row of a pass."""

    def sample_draft(self, output: StepOutput, position: int, max_alternatives: int) -> list[int]:
        """Returns the token sampled from a draft pass, then up to `max_alternatives` others, best first.

        The others are alternatives: side branches of the token tree, one token long.
        """

    def accept(self, output: StepOutput, proposal: Proposal, position: int) -> RoundResult:
        """Returns the accepted tokens of a proposal and the target's token after them.

        Args:
            output: rows of the committed token, then of the draft sequence, then of the alternatives.
            proposal: token tree that was verified.
            position: absolute position that the first row predicts.
        """
