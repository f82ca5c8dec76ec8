"""Greedy acceptance: draft and target take their most probable token, as the graphs give it."""

from __future__ import annotations

from ssruntime.acceptance.base import RoundResult
from ssruntime.acceptance.equality import accept_equal
from ssruntime.backends.base import StepOutput
from ssruntime.proposal import ALTERNATIVE_GAP, Proposal


class GreedyAcceptance:
    """Reads the graphs' `token` and `top_tokens` outputs; the whole rows of logits are not looked at."""

    def sample(self, output: StepOutput, position: int) -> int:
        """Returns the most probable token of the first row."""
        return output.token(0)

    def sample_draft(self, output: StepOutput, position: int, max_alternatives: int) -> list[int]:
        """Returns the draft's most probable token, and the next ones that are nearly as probable."""
        tokens, logits = output.top(0)
        chosen = [tokens[0]]
        least = logits[0] - ALTERNATIVE_GAP
        for rank in range(1, min(max_alternatives + 1, len(tokens))):
            if logits[rank] < least:
                break
            chosen.append(tokens[rank])
        return chosen

    def accept(self, output: StepOutput, proposal: Proposal, position: int) -> RoundResult:
        """Returns the tokens that equal the target's choice, then the target's next one."""
        return accept_equal(proposal, lambda row, _offset: output.token(row))
