"""Tree-attention mask of a verify pass: causal, except that a side branch attends only to its own path."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.proposal import TokenTree


class TreeMask:
    """The `tree_mask` input for passes of one query length, in one buffer that hides nothing between passes.

    The kernels apply the causal mask themselves, so only tokens before the query token need a mark.
    """

    def __init__(self, query_length: int) -> None:
        self._query_length = query_length
        self.values: NDArray[np.float32] = np.zeros((1, 1, query_length, query_length), dtype=np.float32)
        self._memory = cast("memoryview[float]", self.values.reshape(-1).data)

    def hide(self, tree: TokenTree) -> None:
        """Hides from each branch the tokens of the pass that are not on its path."""
        self._mark(tree, graph_io.HIDDEN)

    def show(self, tree: TokenTree) -> None:
        """Undoes `hide` of the same tree."""
        self._mark(tree, 0.0)

    def _mark(self, tree: TokenTree, value: float) -> None:
        memory, query_length = self._memory, self._query_length
        for row, column in tree.hidden():
            memory[row * query_length + column] = value
