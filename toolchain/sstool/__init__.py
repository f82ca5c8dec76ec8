"""`sstool` turns a Hugging Face decoder checkpoint into a self-speculative artifact, and tests artifacts."""

from __future__ import annotations

import os

# `ssruntime` sets this too, but the command line imports `ssruntime` late, to keep `--help` fast.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
