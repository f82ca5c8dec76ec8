"""`available_memory` respects a container's limit, and does not count reclaimable pages as used."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssruntime import machine as facts
from ssruntime.machine import available_memory

MEMINFO = "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 8000 kB\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake file-system root of a machine with 8,000 kB of available memory."""
    monkeypatch.setattr(facts, "Path", lambda path: tmp_path / path.lstrip("/"))
    write(tmp_path / "proc/meminfo", MEMINFO)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.usefixtures("machine")
def test_without_cgroups_all_available_memory_of_the_machine_counts() -> None:
    assert available_memory() == 8000 * 1024


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [
        ("1000000", 400_000, 650_000),
        ("max", 400_000, 8000 * 1024),
        ("300000", 400_000, 0),
        ("90000000", 0, 8000 * 1024),
        ("odd", 0, 8000 * 1024),
    ],
)
def test_cgroup_v2_limits_are_respected(machine: Path, limit: str, used: int, expected: int) -> None:
    write(machine / "proc/self/cgroup", "0::/a/b\n")
    group = machine / "sys/fs/cgroup/a"
    write(group / "memory.max", limit + "\n")
    write(group / "memory.current", f"{used}\n")
    write(group / "memory.stat", "anon 5\ninactive_file 50000\n")
    assert available_memory() == expected


def test_cgroup_v1_limits_are_respected(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "5:cpu:/\n9:memory:/m\n")
    group = machine / "sys/fs/cgroup/memory/m"
    write(group / "memory.limit_in_bytes", "1000000\n")
    write(group / "memory.usage_in_bytes", "400000\n")
    write(group / "memory.stat", "inactive_file 7\ntotal_inactive_file 1000\n")
    assert available_memory() == 601_000


def test_memory_is_unknown_without_meminfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert available_memory() is None


def test_memory_is_known_on_a_real_machine() -> None:
    assert (available_memory() or 0) > 1e6
