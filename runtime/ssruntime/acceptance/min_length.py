"""A minimum length: up to a position, the tokens that end the text have probability 0."""

from __future__ import annotations

from collections.abc import Collection

from ssruntime.acceptance.base import Acceptance, DraftSample, RoundResult
from ssruntime.backends.base import StepOutput
from ssruntime.proposal import Proposal


class MinLengthAcceptance:
    """Applies another rule to outputs without the tokens that end the text, before a position.

    Draft and target are changed alike, so the rule stays lossless.
    """

    def __init__(self, rule: Acceptance, ends: Collection[int], until: int) -> None:
        """Takes the rule.

        Args:
            rule: rule to apply.
            ends: ids of the tokens that end the text.
            until: first absolute position at which they are allowed.
        """
        self._rule = rule
        self._ends = ends
        self._until = until

    def sample(self, output: StepOutput, position: int) -> int:
        """Returns the token that the rule samples."""
        return self._rule.sample(self._without_ends(output, (position,)), position)

    def sample_draft(self, output: StepOutput, position: int, max_alternatives: int) -> DraftSample:
        """Returns the draft's token and alternatives, as the rule samples them."""
        return self._rule.sample_draft(self._without_ends(output, (position,)), position, max_alternatives)

    def accept(self, output: StepOutput, proposal: Proposal, position: int) -> RoundResult:
        """Returns what the rule accepts."""
        trunk = range(position, position + len(proposal.tokens) + 1)
        branches = [position + depth + 1 for depth, _ in proposal.alternatives]
        return self._rule.accept(self._without_ends(output, (*trunk, *branches)), proposal, position)

    def _without_ends(self, output: StepOutput, positions: Collection[int]) -> StepOutput:
        """Returns the output without the end tokens in its rows of early positions.

        Args:
            output: output of a pass.
            positions: absolute position that each row predicts.
        """
        rows = [row for row, position in enumerate(positions) if position < self._until]
        return output.without(self._ends, rows) if rows else output
