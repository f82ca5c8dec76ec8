"""How much memory this process may still take: what the machine has left, or its control group, whichever is less."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ssruntime.cgroup import cgroup_folders

_NAMES: Final = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By version: the files of a group's limit and use, and the key of the part of the use that the system gives up when asked."""


def available_memory() -> int | None:
    """Returns the bytes of memory that a process may take, None where the system does not say."""
    rooms = [_machine(), *(_group(folder, version) for folder, version in cgroup_folders("memory"))]
    return min((room for room in rooms if room is not None), default=None)


def _machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _group(folder: Path, version: int) -> int | None:
    limit, use, reclaimable = _NAMES[version]
    try:
        most = int((folder / limit).read_text(encoding="ascii"))  # version 2 says `max` where there is no limit
        used = int((folder / use).read_text(encoding="ascii"))
        stat = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, most - used + int(stat.get(reclaimable, 0)))
    except (OSError, ValueError):
        return None
