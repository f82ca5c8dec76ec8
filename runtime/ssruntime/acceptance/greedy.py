"""Greedy acceptance: draft and target take their most probable token, as the graphs give it."""

from __future__ import annotations

from collections.abc import Sequence

from ssruntime.acceptance.equality import accept_equal
from ssruntime.backends.base import StepOutput


class GreedyAcceptance:
    """Reads the graphs' `token` outputs; the logits are not looked at."""

    def first(self, output: StepOutput, position: int) -> int:
        """Returns the most probable token of the first row."""
        return output.token(0)

    def propose(self, output: StepOutput, position: int) -> int:
        """Returns the draft's most probable token."""
        return output.token(0)

    def judge(self, output: StepOutput, proposals: Sequence[int], position: int) -> list[int]:
        """Returns the proposals that equal the target's choice, then the target's next token."""
        return accept_equal(proposals, output.token)
