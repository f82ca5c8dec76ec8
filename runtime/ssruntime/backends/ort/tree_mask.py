"""Tree-attention mask of a verify pass: causal, except that a side branch attends only to its own path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.proposal import Alternative


class TreeMask:
    """The `tree_mask` input for passes of one query length, in one buffer that hides nothing between passes.

    The kernels apply the causal mask themselves, so only tokens before the query token need a mark.
    """

    def __init__(self, query_length: int) -> None:
        self._query_length = query_length
        self.values: NDArray[np.float32] = np.zeros((1, 1, query_length, query_length), dtype=np.float32)
        self._memory = cast("memoryview[float]", self.values.reshape(-1).data)

    def hide(self, num_trunk: int, alternatives: Sequence[Alternative]) -> None:
        """Hides from each alternative the tokens of the pass that are not on its path.

        These are the draft sequence from the token that the alternative may replace, and the alternatives
        before it.

        Args:
            num_trunk: number of tokens before the alternatives: the committed token and the draft sequence.
            alternatives: the alternatives of the pass, in the order of their rows.
        """
        self._mark(num_trunk, alternatives, graph_io.HIDDEN)

    def show(self, num_trunk: int, alternatives: Sequence[Alternative]) -> None:
        """Undoes `hide` with the same arguments."""
        self._mark(num_trunk, alternatives, 0.0)

    def _mark(self, num_trunk: int, alternatives: Sequence[Alternative], value: float) -> None:
        memory, query_length = self._memory, self._query_length
        for row, (depth, _) in enumerate(alternatives, num_trunk):
            for column in range(1 + depth, row):
                memory[row * query_length + column] = value
