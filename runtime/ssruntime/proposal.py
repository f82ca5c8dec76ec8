"""The tokens that one verify pass checks: a draft sequence, and alternatives to some of its tokens.

Together they form a token tree. The draft sequence is the trunk. An *alternative* is a side branch, one token
long: one of the draft's next-best tokens at that depth. If a token of the sequence is rejected and an
alternative to it is accepted, the round emits one token more. This pays because a draft that is wrong often
ranks the right token second or third, and because a verify pass reads all weights once, whether it covers one
position or ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ssruntime.graph_io import MAX_QUERY_LENGTH

ALTERNATIVE_GAP: Final = 2.0
"""Largest distance, in nats, of an alternative's score below the score of the draft's own token.

The score is the logit, or with coupled sampling the log weight plus noise. The chance of being right falls
with the distance; 2 nats is the measured optimum."""


class Alternative(NamedTuple):
    """A side branch of the token tree, one token long.

    Attributes:
        depth: index, in the draft sequence, of the token that this one would replace.
        token: token id.
    """

    depth: int
    token: int


class Proposal(NamedTuple):
    """The token tree that one round verifies.

    Attributes:
        tokens: draft sequence, in which each token continues the ones before it.
        alternatives: side branches in order of depth; at the same depth the better ones come first.
    """

    tokens: Sequence[int]
    alternatives: Sequence[Alternative] = ()


def room_beside(num_tokens: int, start: int, end: int) -> int:
    """Returns how many alternatives fit into a verify pass together with a draft sequence.

    Args:
        num_tokens: length of the draft sequence, without the committed token before it.
        start: position of that committed token.
        end: first position at which no alternative is allowed (see `Slot.alternatives_end`).
    """
    return max(0, min(MAX_QUERY_LENGTH, end - start) - 1 - num_tokens)
