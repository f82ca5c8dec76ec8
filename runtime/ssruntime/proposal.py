"""What a draft puts before verify: a chain of tokens, and beside some of them the draft's next-best ones.

A draft that is wrong often has the right token second or third (with the draft of this project's demo model: 34 % and 16 % of the times),
and a verify pass reads all the weights for one position as for ten. So a pass verifies these *alternatives* too: where the chain's token
falls and an alternative stands in its place, the round goes one token further. It is a token tree whose side branches are one token long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from ssruntime.graph_io import MAX_QUERY_LENGTH

ALTERNATIVE_GAP: Final = 2.0
"""Most, in nats, that an alternative's decision score may lie below that of the draft's own token.

The chance that it is the right one falls with that distance. Replayed on recorded drafts of two models with the verify costs of two
machines, 2 was the best or within 0.5 % of it for sampled text, 1 to 2 for greedy; without a limit half of the gain was lost."""


class Alternative(NamedTuple):
    """A token that may stand where the chain has another.

    Attributes:
        depth: index in the chain of the token that it stands beside.
        token: its id.
    """

    depth: int
    token: int


class Proposal(NamedTuple):
    """What one round puts before verify.

    Attributes:
        tokens: the chain, each token drafted behind the one before.
        alternatives: by rising depth, better ones first.
    """

    tokens: Sequence[int]
    alternatives: Sequence[Alternative] = ()


def room_beside(num_tokens: int, start: int, end: int) -> int:
    """Returns how many alternatives fit into a verify pass beside a chain.

    Args:
        num_tokens: of the chain, without the committed token before it.
        start: position of that token.
        end: position from which on the cache takes none (see `Slot.alternatives_end`).
    """
    return max(0, min(MAX_QUERY_LENGTH, end - start) - 1 - num_tokens)
