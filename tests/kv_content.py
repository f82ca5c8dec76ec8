"""The content of a slot's KV cache, which nothing but a test has a reason to see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssruntime.backends.ort.slot import OrtSlot


def kv_content(slot: OrtSlot) -> dict[str, NDArray[np.float32]]:
    """Returns a copy of each buffer of its row by its input name, float32[kv_heads, capacity, head_dim]."""
    return {name: slot.arena.read(slot.row, name, 0, slot.arena.capacity) for name in slot.arena._buffers}
