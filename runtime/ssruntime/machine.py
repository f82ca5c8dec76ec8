"""What machine this is, as far as an artifact's tuning depends on it."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_model() -> str:
    """Returns the processor's model name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
