"""The default number of threads is the number of physical cores that affinity and CPU quota allow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssruntime import machine as facts


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake file-system root of a machine with eight hardware threads on four cores."""
    monkeypatch.setattr(facts, "Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for cpu in range(8):
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.usefixtures("machine")
def test_the_default_counts_cores_not_hardware_threads() -> None:
    assert facts.default_threads() == 4


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("allowed", "expected"), [({0}, 1), ({0, 4}, 1), ({0, 1}, 2), ({1, 4, 6, 7}, 4)])
def test_the_default_honours_affinity(monkeypatch: pytest.MonkeyPatch, allowed: set[int], expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    assert facts.default_threads() == expected


def test_without_topology_every_hardware_thread_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(facts, "Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 9})
    assert facts.default_threads() == 3


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/", {"": "200000 100000"}, 2),
        ("0::/", {"": "150000 100000"}, 2),  # fractions of a core are rounded up
        ("0::/", {"": "50000 100000"}, 1),
        ("0::/", {"": "max 100000"}, 4),
        ("0::/", {"": "900000 100000"}, 4),
        ("0::/a/b", {"": "max 100000", "a": "300000 100000", "a/b": "max 100000"}, 3),
        ("0::/a/b", {"a": "300000 100000", "a/b": "100000 100000"}, 1),
        ("0::/../elsewhere", {"": "200000 100000"}, 2),  # a path as seen inside a container
        ("0::/gone", {}, 4),
        ("0::/", {"": "garbage"}, 4),
    ],
)
def test_the_default_honours_cgroup_v2(machine: Path, own: str, limits: dict[str, str], expected: int) -> None:
    write(machine / "proc/self/cgroup", own + "\n")
    for folder, text in limits.items():
        write(machine / "sys/fs/cgroup" / folder / "cpu.max", text + "\n")
    assert facts.default_threads() == expected


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("4:cpu:/", {"": 200_000}, 2),
        ("4:cpu:/", {"": -1}, 4),
        ("7:memory:/m\n4:cpu,cpuacct:/slice/unit", {"": -1, "slice": 100_000, "slice/unit": -1}, 1),
        ("4:cpu,cpuacct:/docker/0123", {"": 300_000}, 3),  # a container's own group is mounted as the root
        ("4:cpuset:/", {"": 100_000}, 4),
    ],
)
def test_the_default_honours_cgroup_v1(machine: Path, own: str, limits: dict[str, int], expected: int) -> None:
    write(machine / "proc/self/cgroup", own + "\n")
    for folder, quota in limits.items():
        write(machine / "sys/fs/cgroup/cpu" / folder / "cpu.cfs_quota_us", f"{quota}\n")
        write(machine / "sys/fs/cgroup/cpu" / folder / "cpu.cfs_period_us", "100000\n")
    assert facts.default_threads() == expected


def test_the_default_honours_the_affinity_of_a_real_process() -> None:
    one = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, {{{one}}}); from ssruntime.machine import default_threads; print(default_threads())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert 1 <= facts.default_threads() <= len(os.sched_getaffinity(0))
