"""The self-speculative proposer: drafts with the model itself, some of whose sublayers are skipped.

Each draft step gives one token, until the stopping policy or the limit ends the draft sequence. The draft
reads the KV that the full model wrote for committed tokens. It writes the KV of its own tokens in place, and
verify overwrites it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final

from ssruntime.acceptance import Acceptance
from ssruntime.backends.base import Pass, StepOutput, make_pass
from ssruntime.planning.batch_costs import BatchCosts
from ssruntime.proposal import Alternative, Proposal, room_beside
from ssruntime.proposers.base import SequenceView
from ssruntime.sampling.distribution import Distribution
from ssruntime.stopping import StoppingPolicy

SOURCE: Final = "skip"


class SkipProposer:
    """Proposes with the draft engine. Alternatives are next-best tokens of the same steps."""

    def __init__(
        self,
        acceptance: Acceptance,
        stopping: StoppingPolicy,
        *,
        max_draft: int,
        max_alternatives: int,
        alternatives_end: int,
        costs: BatchCosts | None = None,
    ) -> None:
        """Takes the parts of one request.

        Args:
            acceptance: acceptance rule, which samples the draft's tokens.
            stopping: policy that ends draft sequences.
            max_draft: largest number of tokens in a draft sequence.
            max_alternatives: largest number of alternatives to a drafted token.
            alternatives_end: first position at which no alternative is allowed.
            costs: costs of passes. If given, there are no alternatives while several sequences share a pass.
        """
        self._acceptance = acceptance
        self._stopping = stopping
        self._max_draft = max_draft
        self._max_alternatives = max_alternatives
        self._alternatives_end = alternatives_end
        self._costs = costs

    def propose(self, sequence: SequenceView, limit: int) -> Generator[Pass, StepOutput, Proposal]:
        """Returns up to `limit` tokens that continue the sequence, with alternatives."""
        goes_on, sample_draft = self._stopping.goes_on, self._acceptance.sample_draft
        first, position = sequence.start, len(sequence.ids)
        limit = min(limit, self._max_draft)
        if limit < 1 or not self._stopping.begin(position, limit):
            return Proposal()
        # A shared pass computes as many rows for every sequence as for the longest one.
        is_shared = self._costs is not None and self._costs.is_shared
        max_alternatives = self._max_alternatives if not is_shared and room_beside(position - first, first, self._alternatives_end) else 0
        tokens: list[int] = []
        draft_probs: list[Distribution | None] = []
        alternatives: list[Alternative] = []
        # The first step also runs the committed tokens before the last one that have no KV yet.
        start, ids = first, tuple(sequence.ids[first:])
        for depth in range(limit):
            output = yield make_pass(("draft", ids, start, ()))
            sampled, evidence, probs = sample_draft(output, position + depth, max_alternatives)
            token = sampled[0]
            tokens.append(token)
            draft_probs.append(probs)
            for other in sampled[1:]:
                alternatives.append(Alternative(depth, other))  # noqa: PERF401 - most steps have none
            if not goes_on(depth + 1, evidence):
                break
            start, ids = position + depth, (token,)
        if alternatives:
            del alternatives[room_beside(position - first - 1 + len(tokens), first, self._alternatives_end) :]
        return Proposal(tokens, [SOURCE] * len(tokens), draft_probs, alternatives)

    def observe(self, proposed: int, accepted: int, emitted: Sequence[int]) -> None:
        """Passes the result of a round on to the stopping policy."""
        self._stopping.observe(proposed, accepted, len(emitted))
