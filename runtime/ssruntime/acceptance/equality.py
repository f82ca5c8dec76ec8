"""Acceptance by equality: a draft token stands if the target, asked at the same place, picks the same one."""

from __future__ import annotations

from collections.abc import Callable

from ssruntime.acceptance.base import RoundResult
from ssruntime.proposal import Proposal


def accept_equal(proposal: Proposal, target_token: Callable[[int, int], int]) -> RoundResult:
    """Returns the leading tokens that the target also picks, followed by its token after them.

    Where the target picks an alternative instead of the chain's token, that one stands, and its own row gives the token after it.

    Args:
        proposal: a chain of k tokens, and its alternatives.
        target_token: gives the target's token for row 0..k of the chain, or k + 1 + i of alternative i, and its offset from the first
            position decided; asked in order of the offsets, and no further than needed.
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
