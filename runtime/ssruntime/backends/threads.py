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
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas: list[float | None] = []
    for line in lines:  # hierarchy:controllers:path, where version 2 names no controllers
        _, controllers, own = line.split(":", 2)
        if not controllers:
            quotas += [_v2_quota(folder) for folder in _up_to(Path("/sys/fs/cgroup"), own)]
        elif "cpu" in controllers.split(","):
            quotas += [_v1_quota(folder) for folder in _up_to(Path("/sys/fs/cgroup/cpu"), own)]
    return min((q for q in quotas if q is not None), default=None)


def _up_to(root: Path, own: str) -> list[Path]:
    """Returns a cgroup's folder and the ones that enclose it; in a container some may not be there, and the root is its own."""
    folder = root / own.lstrip("/")
    return [folder, *(p for p in folder.parents if p.is_relative_to(root))]


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
