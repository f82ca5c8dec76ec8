"""`sstool`: from a Hugging Face decoder checkpoint to a self-speculative artifact, and what measures one."""

from __future__ import annotations

import os

# As in `ssruntime`, whose import would be slow where only help is asked for.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
