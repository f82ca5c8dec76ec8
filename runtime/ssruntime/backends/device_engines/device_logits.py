"""Logits that stay in a device's memory until a row of them is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ssruntime.backends.device import Device, Memory


class DeviceLogits:
    """Rows float32[N, vocab] of a device buffer; an index fetches rows, a slice refers to some of them.

    It stands for an array in `StepOutput.logits`, and is valid until the engine's next pass.
    """

    def __init__(self, device: Device, memory: Memory, rows: Sequence[int], vocab_size: int) -> None:
        """Takes the buffer, and the numbers of the rows in it."""
        self._device, self._memory = device, memory
        self._rows = rows
        self._vocab_size = vocab_size

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and of tokens."""
        return len(self._rows), self._vocab_size

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen: int | slice) -> NDArray[np.float32]:
        if isinstance(chosen, slice):
            return as_array(DeviceLogits(self._device, self._memory, self._rows[chosen], self._vocab_size))
        row: NDArray[np.float32] = self._fetch([self._rows[chosen]])[0]
        return row

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        content = self._fetch(self._rows)
        return content if dtype is None else content.astype(dtype, copy=False)

    def copy(self) -> NDArray[np.float32]:
        """Returns all rows as an array."""
        return self._fetch(self._rows)

    def astype(self, dtype: Any) -> NDArray[Any]:
        """Returns all rows as an array of a data type."""
        return self._fetch(self._rows).astype(dtype)

    def _fetch(self, rows: Sequence[int]) -> NDArray[np.float32]:
        content = np.empty((len(rows), self._vocab_size), dtype=np.float32)
        width = 4 * self._vocab_size
        if len(rows) and list(rows) == list(range(rows[0], rows[0] + len(rows))):
            self._device.download(self._memory, rows[0] * width, content, width)
            return content
        for at, row in enumerate(rows):
            self._device.download(self._memory, row * width, content[at : at + 1], width)
        return content


def as_array(logits: DeviceLogits) -> NDArray[np.float32]:
    """Returns logits as what `StepOutput.logits` declares: rows, shape and copies are read alike."""
    return cast("NDArray[np.float32]", logits)
