"""Acceptance by equality: a draft token is accepted if the target samples the same token at its position."""

from __future__ import annotations

from collections.abc import Callable

from ssruntime.acceptance.base import RoundResult
from ssruntime.proposal import Proposal


def accept_equal(proposal: Proposal, target_token: Callable[[int], int], sure_token: Callable[[int, int], int | None]) -> RoundResult:
    """Returns the leading draft tokens that the target also samples, followed by the target's next token.

    If the target samples an alternative instead of the token of the draft sequence, that alternative is
    accepted, and its own row gives the next token.

    Args:
        proposal: draft sequence of k tokens, with its alternatives.
        target_token: function that returns the target's token for a row of the trunk. Row 0 is the committed
            token's, rows 1..k are the draft sequence's. It is called in order, and only for the rows that are
            needed.
        sure_token: the same for the row of an alternative and its offset, which counts from the position that
            row 0 predicts; None if an error within the branch margin could change the token.
    """
    tokens = proposal.tokens
    emitted: list[int] = []
    for row, drafted in enumerate(tokens):
        token = target_token(row)
        emitted.append(token)
        if token != drafted:
            alternative = proposal.alternative_at(row, token)
            if alternative is None:
                return RoundResult(emitted)
            after = sure_token(proposal.alternative_row(alternative), row + 1)
            if after is not None:
                emitted.append(after)
            return RoundResult(emitted, alternative, after is None)
    emitted.append(target_token(len(tokens)))
    return RoundResult(emitted)
