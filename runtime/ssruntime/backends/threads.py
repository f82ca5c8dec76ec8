"""How many threads an engine gets unless told: the physical cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from ssruntime.cgroup import cgroup_folders


def default_threads() -> int:
    """Returns the number of physical cores within the process's affinity and its cgroup's CPU quota, at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = len({_core_of(cpu) for cpu in allowed})
    quota = _cgroup_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def _core_of(cpu: int) -> str:
    """Returns a name that the hardware threads of one core share."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _cgroup_quota() -> float | None:
    """Returns the CPUs' worth of time that the tightest enclosing cgroup grants; None where there is no limit."""
    quotas = [_v2_quota(folder) if version == 2 else _v1_quota(folder) for folder, version in cgroup_folders("cpu")]
    return min((q for q in quotas if q is not None), default=None)


def _v2_quota(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _v1_quota(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return limit / period if limit > 0 else None
