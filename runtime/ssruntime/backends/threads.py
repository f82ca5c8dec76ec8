"""How many threads an engine gets unless told: the physical cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


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
    found = [q for q in (*_cgroup_v2_quotas(), _cgroup_v1_quota()) if q is not None]
    return min(found, default=None)


def _cgroup_v2_quotas() -> list[float]:
    root = Path("/sys/fs/cgroup")
    try:
        line = next(x for x in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines() if x.startswith("0::"))
    except (OSError, StopIteration):
        return []
    folder = root / line[3:].lstrip("/")
    quotas = []
    for place in (folder, *folder.parents):
        try:
            limit, period = (place / "cpu.max").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            continue
        if limit != "max":
            quotas.append(int(limit) / int(period))
        if place == root:
            break
    return quotas


def _cgroup_v1_quota() -> float | None:
    folder = Path("/sys/fs/cgroup/cpu")
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return limit / period if limit > 0 else None
