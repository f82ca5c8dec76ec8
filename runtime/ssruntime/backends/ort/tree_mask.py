"""Tree-attention mask of a verify pass: causal, except that a side branch attends only to its own path."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ssruntime import graph_io


class TreeMask:
    """The `tree_mask` input for passes of one query length, in one buffer that hides nothing between passes.

    The kernels apply the causal mask themselves, so only tokens before the query token need a mark.
    """

    def __init__(self, query_length: int) -> None:
        self._query_length = query_length
        self.values: NDArray[np.float32] = np.zeros((1, 1, query_length, query_length), dtype=np.float32)
        self._memory = cast("memoryview[float]", self.values.reshape(-1).data)
        self._marked: list[int] = []

    def hide(self, rows: Iterable[tuple[int, int, int]]) -> None:
        """Hides from each branch the tokens of the pass that are not on its path; see `branch_rows`."""
        memory, query_length = self._memory, self._query_length
        self._marked = [row * query_length + column for row, offset, _ in rows for column in range(offset, row)]
        for index in self._marked:
            memory[index] = graph_io.HIDDEN

    def show_all(self) -> None:
        """Undoes `hide`."""
        memory = self._memory
        for index in self._marked:
            memory[index] = 0.0
