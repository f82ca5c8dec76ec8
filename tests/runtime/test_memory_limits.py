"""The memory there is counts a container's limit, without the pages that would be given up."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssruntime import machine as facts
from ssruntime.machine import available_memory

MEMINFO = "MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable: 8000 kB\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is taken for the root of the file system, of a machine with 8,000 kB left."""
    monkeypatch.setattr(facts, "Path", lambda path: tmp_path / path.lstrip("/"))
    write(tmp_path / "proc/meminfo", MEMINFO)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.usefixtures("machine")
def test_without_groups_it_is_the_machine_s() -> None:
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
def test_version_2(machine: Path, limit: str, used: int, expected: int) -> None:
    write(machine / "proc/self/cgroup", "0::/a/b\n")
    group = machine / "sys/fs/cgroup/a"
    write(group / "memory.max", limit + "\n")
    write(group / "memory.current", f"{used}\n")
    write(group / "memory.stat", "anon 5\ninactive_file 50000\n")
    assert available_memory() == expected


def test_version_1(machine: Path) -> None:
    write(machine / "proc/self/cgroup", "5:cpu:/\n9:memory:/m\n")
    group = machine / "sys/fs/cgroup/memory/m"
    write(group / "memory.limit_in_bytes", "1000000\n")
    write(group / "memory.usage_in_bytes", "400000\n")
    write(group / "memory.stat", "inactive_file 7\ntotal_inactive_file 1000\n")
    assert available_memory() == 601_000


def test_nothing_is_known_where_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert available_memory() is None


def test_the_real_machine() -> None:
    assert (available_memory() or 0) > 1e6
