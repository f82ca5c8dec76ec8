"""The self-speculative proposer: the model itself with some sublayers skipped, one token a step, until the exit policy stops it.

The draft reads what the full model cached for the verified tokens, and writes its own tokens' cache in place; verify overwrites it.
"""

from __future__ import annotations

from ssruntime.acceptance import Acceptance
from ssruntime.backends.base import Slot
from ssruntime.proposal import Alternative, Proposal, room_beside
from ssruntime.stopping import StoppingPolicy


class SkipProposer:
    """Drafts with the draft engine of one slot; the alternatives are the other tokens that the same steps found nearly as good."""

    def __init__(self, slot: Slot, acceptance: Acceptance, exit_policy: StoppingPolicy, *, max_alternatives: int) -> None:
        self._slot = slot
        self._acceptance = acceptance
        self._exit = exit_policy
        self._max_alternatives = max_alternatives

    def propose(self, token: int, start: int, limit: int) -> Proposal:
        """Returns a chain of up to `limit` tokens that follow `token` at position `start`, with its alternatives."""
        tokens: list[int] = []
        alternatives: list[Alternative] = []
        max_alternatives = self._max_alternatives if room_beside(1, start, self._slot.alternatives_end) else 0
        for depth in range(limit):
            output = self._slot.draft(token, start + depth)
            token, *others = self._acceptance.sample_draft(output, start + depth + 1, max_alternatives)
            tokens.append(token)
            alternatives.extend(Alternative(depth, other) for other in others)
            if self._exit.should_stop(output.probability(0)):
                break
        return Proposal(tokens, alternatives[: room_beside(len(tokens), start, self._slot.alternatives_end)])

    def observe(self, proposed: int, accepted: int) -> None:
        """Tells the exit policy how the round went."""
        self._exit.observe(proposed, accepted)
