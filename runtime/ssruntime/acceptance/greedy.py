"""Greedy acceptance: a draft token is accepted if it is the target's most probable token."""

from __future__ import annotations

from ssruntime.acceptance.base import DraftSample, RoundResult, branch_error
from ssruntime.acceptance.equality import accept_equal
from ssruntime.backends.base import StepOutput
from ssruntime.planning.acceptance import Evidence
from ssruntime.proposal import Proposal
from ssruntime.sampling.filters import ALTERNATIVE_GAP, MOST_MARGIN


class GreedyAcceptance:
    """Uses only the graphs' on-graph TopK outputs, never whole rows of logits."""

    def __init__(self, branch_margin: float) -> None:
        """Takes the artifact's `branch_margin`."""
        self._margin = branch_margin

    def sample(self, output: StepOutput, position: int) -> int:
        """Returns the most probable token of the first row."""
        return output.token(0)

    def sample_draft(self, output: StepOutput, position: int, max_alternatives: int) -> DraftSample:
        """Returns the draft's best token, then the next-best ones within `ALTERNATIVE_GAP` of its logit."""
        tokens, logits = output.top(0)
        chosen = [tokens[0]]
        least = logits[0] - ALTERNATIVE_GAP
        for rank in range(1, min(max_alternatives + 1, len(tokens))):
            if logits[rank] < least:
                break
            chosen.append(tokens[rank])
        confidence = output.probability(0)
        margin = min(logits[0] - logits[1], MOST_MARGIN) if len(logits) > 1 else MOST_MARGIN
        return DraftSample(chosen, Evidence(confidence, confidence, margin))

    def accept(self, output: StepOutput, proposal: Proposal, position: int) -> RoundResult:
        """Returns the draft tokens that equal the target's best ones, then the target's next token."""
        return accept_equal(proposal, output.token, lambda row, _offset: self._sure_token(output, row))

    def _sure_token(self, output: StepOutput, row: int) -> int | None:
        tokens, logits = output.top(row)
        if len(logits) > 1 and logits[0] - logits[1] <= branch_error(logits, self._margin):
            return None
        return tokens[0]
