"""What the target `ort-cpu` offers; see `ssruntime.backends.registry.TargetModule`."""

from __future__ import annotations

from ssruntime.backends.ort.backend import open_backend
from ssruntime.backends.ort.packing import damaged_entry, discard, packing_state

__all__ = ["damaged_entry", "discard", "open_backend", "packing_state"]
