"""The self-speculative proposer: drafts with the model itself, some of whose sublayers are skipped.

Each draft step gives one token, until the stopping policy or the limit ends the draft sequence. The draft
reads the KV that the full model wrote for committed tokens. It writes the KV of its own tokens in place, and
verify overwrites it.
"""

from __future__ import annotations

from ssruntime.acceptance import Acceptance
from ssruntime.backends.base import Slot
from ssruntime.proposal import Alternative, Proposal, room_beside
from ssruntime.stopping import StoppingPolicy


class SkipProposer:
    """Proposes with the draft engine of one slot. Alternatives are next-best tokens of the same steps."""

    def __init__(self, slot: Slot, acceptance: Acceptance, stopping: StoppingPolicy, *, max_alternatives: int) -> None:
        self._slot = slot
        self._acceptance = acceptance
        self._stopping = stopping
        self._max_alternatives = max_alternatives

    def propose(self, token: int, start: int, limit: int) -> Proposal:
        """Returns up to `limit` tokens that continue `token` at position `start`, with alternatives."""
        tokens: list[int] = []
        alternatives: list[Alternative] = []
        max_alternatives = self._max_alternatives if room_beside(1, start, self._slot.alternatives_end) else 0
        for depth in range(limit):
            output = self._slot.draft(token, start + depth)
            token, *others = self._acceptance.sample_draft(output, start + depth + 1, max_alternatives)
            tokens.append(token)
            alternatives.extend(Alternative(depth, other) for other in others)
            if self._stopping.should_stop(output.probability(0)):
                break
        return Proposal(tokens, alternatives[: room_beside(len(tokens), start, self._slot.alternatives_end)])

    def observe(self, proposed: int, accepted: int) -> None:
        """Passes the result of a round on to the stopping policy."""
        self._stopping.observe(proposed, accepted)
