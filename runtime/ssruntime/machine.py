"""Facts about this machine, read in one place: processor, usable cores, memory, and a container's limits."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MEMORY_FILES: Final = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By cgroup version: the files with a group's limit and its usage, and the key of the reclaimable usage."""


def cpu_model() -> str:
    """Returns the processor's model name, or the machine type if the name is not known."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_features() -> str:
    """Returns the machine type, the processor's model name and its instruction-set flags as one text."""
    named = _cpuinfo()
    if not named:
        return f"{platform.machine()} {platform.processor()}"
    flags = " ".join(sorted((named.get("flags") or named.get("Features") or "").split()))
    return f"{platform.machine()} {named.get('model name', '')} {flags}"


def logical_cpus() -> int:
    """Returns the number of hardware threads that this process may use."""
    return len(_allowed_cpus())


def default_threads() -> int:
    """Returns the number of physical cores that CPU affinity and the cgroups' CPU quota allow, at least 1."""
    cores = len({_core_of(cpu) for cpu in _allowed_cpus()})
    quota = _cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def l2_cache_size() -> int | None:
    """Returns the size of the L2 cache in bytes, or None if it is not known."""
    try:
        return os.sysconf("SC_LEVEL2_CACHE_SIZE") or None
    except (ValueError, OSError, AttributeError):
        return None


def total_memory() -> int | None:
    """Returns the machine's memory in bytes, or None if it is not known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def available_memory() -> int | None:
    """Returns the bytes that this process may still allocate, or None if they are not known.

    This is the least of the machine's available memory and what each enclosing cgroup still allows.
    """
    rooms = [_machine_memory_left(), *(_group_memory_left(folder, version) for folder, version in _cgroup_folders("memory"))]
    return min((room for room in rooms if room is not None), default=None)


def return_freed_memory() -> None:
    """Returns freed heap memory to the system if the C library can; glibc otherwise keeps it for later."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # a C library without it, or Windows
        ctypes.CDLL(None).malloc_trim(0)


def _cpuinfo() -> dict[str, str]:
    """Returns the fields of `/proc/cpuinfo` for the first processor; empty if there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    named: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        named.setdefault(name.strip(), value.strip())
    return named


def _allowed_cpus() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _core_of(cpu: int) -> str:
    """Returns a text that is the same for all hardware threads of a core."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _cpu_quota() -> float | None:
    """Returns the lowest CPU quota of the enclosing cgroups, in CPUs; None if there is none."""
    quotas = [_cpu_quota_v2(folder) if version == 2 else _cpu_quota_v1(folder) for folder, version in _cgroup_folders("cpu")]
    return min((q for q in quotas if q is not None), default=None)


def _cpu_quota_v2(folder: Path) -> float | None:
    try:
        limit, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _cpu_quota_v1(folder: Path) -> float | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return limit / period if limit > 0 else None


def _machine_memory_left() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _group_memory_left(folder: Path, version: int) -> int | None:
    limit, usage, reclaimable = _MEMORY_FILES[version]
    try:
        most = int((folder / limit).read_text(encoding="ascii"))  # version 2 writes `max` if there is no limit
        used = int((folder / usage).read_text(encoding="ascii"))
        stat = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, most - used + int(stat.get(reclaimable, 0)))
    except (OSError, ValueError):
        return None


def _cgroup_folders(controller: str) -> Iterator[tuple[Path, int]]:
    """Yields the folders that may contain a controller's limits: the process's own group and its parents.

    Args:
        controller: `cpu` or `memory`.

    Yields:
        A folder, which may not exist, and the cgroup version of its files, 1 or 2.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:  # hierarchy:controllers:path; version 2 names no controllers
        _, controllers, own = line.split(":", 2)
        if not controllers:
            yield from ((folder, 2) for folder in _up_to(Path("/sys/fs/cgroup"), own))
        elif controller in controllers.split(","):
            yield from ((folder, 1) for folder in _up_to(Path(f"/sys/fs/cgroup/{controller}"), own))


def _up_to(root: Path, own: str) -> list[Path]:
    """Returns a group's folder and all enclosing ones up to the root; in a container, some may not exist."""
    folder = root / own.lstrip("/")
    return [folder, *(p for p in folder.parents if p.is_relative_to(root))]
