"""The content of a slot's KV cache, which nothing but a test has a reason to see."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssruntime.backends.ort.slot import OrtSlot


def kv_content(slot: OrtSlot) -> dict[str, NDArray[np.float32]]:
    """Returns a copy of each buffer by its input name, float32[1, kv_heads, max_context, head_dim]."""
    return {name: buffer.copy() for name, buffer in slot._cache._buffers.items()}
