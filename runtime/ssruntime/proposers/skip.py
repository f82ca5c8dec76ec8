"""The self-speculative proposer: the model itself with some sublayers skipped, one token a step, until the exit policy stops it.

The draft reads what the full model cached for the verified tokens, and writes its own tokens' cache in place; verify overwrites it.
"""

from __future__ import annotations

from ssruntime.acceptance import Acceptance
from ssruntime.backends.base import Slot
from ssruntime.exits import ExitPolicy


class SkipProposer:
    """Drafts with the draft engine of one slot."""

    def __init__(self, slot: Slot, acceptance: Acceptance, exit_policy: ExitPolicy) -> None:
        self._slot = slot
        self._acceptance = acceptance
        self._exit = exit_policy

    def propose(self, token: int, start: int, limit: int) -> list[int]:
        """Returns up to `limit` draft tokens that follow `token` at position `start`."""
        tokens: list[int] = []
        for position in range(start, start + limit):
            output = self._slot.draft(token, position)
            token = self._acceptance.propose(output, position + 1)
            tokens.append(token)
            if self._exit.should_stop(output.probability(0)):
                break
        return tokens

    def observe(self, proposed: int, accepted: int) -> None:
        """Tells the exit policy how the round went."""
        self._exit.observe(proposed, accepted)
