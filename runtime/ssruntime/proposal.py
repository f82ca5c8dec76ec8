"""What a round proposes, and the token tree that its verify pass checks: the owner of that pass's layout.

The trunk of the tree is the committed tokens without KV, then the draft sequence. An *alternative* is a side
branch, one token long: one of the draft's next-best tokens at some depth. If a token of the draft sequence is
rejected and an alternative to it is accepted, the round emits one token more. This pays because a draft that
is wrong often ranks the right token second or third, and because a verify pass reads all weights once,
whether it covers one position or ten.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.sampling.distribution import Distribution


class Alternative(NamedTuple):
    """A side branch of a token tree, one token long.

    Attributes:
        depth: where the branch leaves the main line. In a `Proposal`: number of draft tokens before it. In a
            `TokenTree`: index in the trunk of the token that it follows. `Proposal.tree` converts.
        token: token id.
    """

    depth: int
    token: int


class TokenTree(NamedTuple):
    """The tokens of one pass that starts at position `start`.

    Row i of the pass's outputs, and KV-cache entry `start + i`, belong to `trunk[i]`. The rows and entries of
    the branches follow, in their order.

    Attributes:
        trunk: token ids; `trunk[i]` has position `start + i` and attends to everything before it.
        branches: a branch of depth d has the position of `trunk[d + 1]` and attends to the tokens before
            that position and to itself.
    """

    trunk: Sequence[int]
    branches: Sequence[Alternative] = ()

    @property
    def num_rows(self) -> int:
        """Number of tokens of the pass."""
        return len(self.trunk) + len(self.branches)

    def branch_offset(self, index: int) -> int:
        """Returns the position of a branch, counted from `start`."""
        return self.branches[index].depth + 1

    def branch_row(self, index: int) -> int:
        """Returns the row of a branch."""
        return len(self.trunk) + index


_make_tree: Final[Callable[[tuple[Sequence[int], Sequence[Alternative]]], TokenTree]] = functools.partial(tuple.__new__, TokenTree)
"""Makes a tree from its values, faster than the class does, which calls a Python function."""


def branch_rows(tree: tuple[Sequence[int], Sequence[Alternative]]) -> list[tuple[int, int, int]]:
    """Returns the row, the offset (see `TokenTree.branch_offset`) and the token of each branch of a tree.

    A branch must not attend to the rows from its offset on that are before its own: these are the rest of the
    trunk, and the branches before it.

    Args:
        tree: trunk and branches.
    """
    trunk, branches = tree
    return [(row, depth + 1, token) for row, (depth, token) in enumerate(branches, len(trunk))]


@dataclass(slots=True)
class Proposal:
    """The draft sequence of one round, with alternatives to its tokens.

    Attributes:
        tokens: draft sequence, in which each token continues the ones before it.
        sources: name of the proposer of each token.
        draft_probs: distribution that each token was drawn from; None for a token that its proposer gave
            with certainty.
        alternatives: side branches in order of depth; at the same depth the better ones come first.
    """

    tokens: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    draft_probs: list[Distribution | None] = field(default_factory=list)
    alternatives: list[Alternative] = field(default_factory=list)

    def append(self, token: int, source: str, draft_probs: Distribution | None = None) -> None:
        """Adds a token to the draft sequence."""
        self.tokens.append(token)
        self.sources.append(source)
        self.draft_probs.append(draft_probs)

    def tree(self, committed: Sequence[int]) -> TokenTree:
        """Returns the token tree after the committed tokens without KV, of which there is at least one."""
        trunk = (*committed, *self.tokens)
        if not self.alternatives:
            return _make_tree((trunk, ()))
        shift = len(committed) - 1
        if not shift:
            return _make_tree((trunk, self.alternatives))
        return _make_tree((trunk, [Alternative(depth + shift, token) for depth, token in self.alternatives]))

    def alternative_at(self, depth: int, token: int) -> int | None:
        """Returns the index of the alternative of that depth and token; None if there is none."""
        for index, alternative in enumerate(self.alternatives):
            if alternative.depth == depth and alternative.token == token:
                return index
        return None

    def alternative_row(self, index: int) -> int:
        """Returns the row of an alternative, if row 0 is that of the last committed token."""
        return len(self.tokens) + 1 + index


def room_beside(num_tokens: int, start: int, end: int) -> int:
    """Returns how many branches fit into a verify pass beside a trunk.

    Args:
        num_tokens: length of the trunk after its first token.
        start: position of that first token.
        end: first position at which no alternative is allowed (see `Slot.alternatives_end`).
    """
    return max(0, min(MAX_QUERY_LENGTH, end - start) - 1 - num_tokens)
