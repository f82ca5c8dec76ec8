"""Acceptance by equality: a draft token is accepted if the target samples the same token at its position."""

from __future__ import annotations

from collections.abc import Callable

from ssruntime.acceptance.base import RoundResult
from ssruntime.proposal import Proposal


def accept_equal(proposal: Proposal, target_token: Callable[[int, int], int]) -> RoundResult:
    """Returns the leading draft tokens that the target also samples, followed by the target's next token.

    If the target samples an alternative instead of the token of the draft sequence, that alternative is
    accepted, and its own row gives the next token.

    Args:
        proposal: draft sequence of k tokens, with its alternatives.
        target_token: function that returns the target's token for a row and its offset. Row 0 is the
            committed token's, rows 1..k are the draft sequence's, row k + 1 + i is alternative i's. The
            offset counts from the position that row 0 predicts. The function is called in order of offsets,
            and only for the rows that are needed.
    """
    tokens = proposal.tokens
    emitted: list[int] = []
    for row, drafted in enumerate(tokens):
        token = target_token(row, row)
        emitted.append(token)
        if token != drafted:
            for index, (depth, alternative) in enumerate(proposal.alternatives):
                if depth == row and alternative == token:
                    emitted.append(target_token(len(tokens) + 1 + index, row + 1))
                    return RoundResult(emitted, index)
            return RoundResult(emitted)
    emitted.append(target_token(len(tokens), len(tokens)))
    return RoundResult(emitted)
