"""Acceptance by equality: a draft token stands if the target, asked at the same place, picks the same one."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def accept_equal(proposals: Sequence[int], target_token: Callable[[int], int]) -> list[int]:
    """Returns the leading proposals that the target also picks, followed by the target's token after them.

    Args:
        proposals: k draft tokens.
        target_token: gives the target's token for row i in 0..k; asked in order, and no further than the first difference.
    """
    emitted: list[int] = []
    for row, proposal in enumerate(proposals):
        token = target_token(row)
        emitted.append(token)
        if token != proposal:
            return emitted
    emitted.append(target_token(len(proposals)))
    return emitted
