"""The interface of acceptance rules, which sample tokens and accept or reject the tokens of a proposal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from ssruntime.backends.base import StepOutput
from ssruntime.planning.acceptance import Evidence
from ssruntime.proposal import Proposal
from ssruntime.sampling.distribution import Distribution

_TINY: Final = sys.float_info.min
"""Least scale of logits: an infinite margin times a scale of 0 would be NaN."""


class RoundResult(NamedTuple):
    """The tokens that a round emits.

    Attributes:
        emitted: accepted tokens, followed by one token of the target: a correction token after a rejection, a
            bonus token otherwise. An accepted alternative is the last accepted token, and a bonus token
            follows it.
        alternative: index in `Proposal.alternatives` of the accepted alternative; None if none was accepted.
        is_withheld: whether the bonus token after an accepted alternative is left to the next round, because
            the target's choice is too close to trust the alternative's own row.
    """

    emitted: list[int]
    alternative: int | None = None
    is_withheld: bool = False


def branch_error(logits: Sequence[float], margin: float) -> float:
    """Returns the distance by which errors may move two logits of a branch apart.

    Args:
        logits: the branch's top logits, best first; their largest absolute value is the scale.
        margin: the artifact's `branch_margin`.
    """
    return 2 * margin * max(abs(logits[0]), abs(logits[-1]), _TINY)


class DraftSample(NamedTuple):
    """A token sampled from a draft pass.

    Attributes:
        tokens: the token, with its alternatives after it, best first.
        evidence: what is known of the token.
        draft_probs: the distribution that it was drawn from; None if the acceptance rule needs none.
    """

    tokens: list[int]
    evidence: Evidence
    draft_probs: Distribution | None = None


class Acceptance(Protocol):
    """Samples tokens from engine outputs, and decides which tokens of a proposal are accepted.

    In each method, `position` is the absolute position, in the sequence, of the token that the output's first
    row predicts.
    """

    def sample(self, output: StepOutput, position: int) -> int:
        """Returns the token that autoregressive decoding samples from the first row of a pass."""

    def sample_draft(self, output: StepOutput, position: int, max_alternatives: int) -> DraftSample:
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
