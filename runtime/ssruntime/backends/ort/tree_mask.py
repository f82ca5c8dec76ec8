"""Which new tokens of a verify pass see one another: all the ones before, but where an alternative must not look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.proposal import Alternative


class TreeMask:
    """The `tree_mask` of passes of one width, in the same memory for all; between two passes it hides nothing."""

    def __init__(self, width: int) -> None:
        self._width = width
        self.values: NDArray[np.float32] = np.zeros((1, 1, width, width), dtype=np.float32)
        self._memory = cast("memoryview[float]", self.values.reshape(-1).data)

    def hide(self, num_trunk: int, alternatives: Sequence[Alternative]) -> None:
        """Hides from each alternative what lies between the chain before it and itself.

        Args:
            num_trunk: tokens of the pass before the alternatives.
            alternatives: those of the pass.
        """
        self._mark(num_trunk, alternatives, graph_io.HIDDEN)

    def show(self, num_trunk: int, alternatives: Sequence[Alternative]) -> None:
        """Undoes `hide`."""
        self._mark(num_trunk, alternatives, 0.0)

    def _mark(self, num_trunk: int, alternatives: Sequence[Alternative], value: float) -> None:
        memory, width = self._memory, self._width
        for row, (depth, _) in enumerate(alternatives, num_trunk):
            for column in range(1 + depth, row):
                memory[row * width + column] = value
