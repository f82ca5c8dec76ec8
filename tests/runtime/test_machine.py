"""The processor's name and features and the memory are read from the system, with fallbacks."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ssruntime import machine as facts

X86 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9B14: Turbo
flags\t\t: fpu avx2 avx512f
bugs\t\t:

processor\t: 1
model name\t: another one
flags\t\t: fpu
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: sve asimd fp
CPU part\t: 0xd40
"""

Tell = Callable[[str], None]


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """A function that writes `/proc/cpuinfo` of a fake machine of type `m` with a processor `p`."""
    monkeypatch.setattr(facts, "Path", lambda path: tmp_path / path.lstrip("/"))
    monkeypatch.setattr(platform, "machine", lambda: "m")
    monkeypatch.setattr(platform, "processor", lambda: "p")
    (tmp_path / "proc").mkdir()

    def write(text: str) -> None:
        (tmp_path / "proc/cpuinfo").write_text(text, encoding="utf-8")

    return write


def test_x86(tell: Tell) -> None:
    tell(X86)
    assert facts.cpu_model() == "AMD EPYC 9B14: Turbo"
    assert facts.cpu_features() == "m AMD EPYC 9B14: Turbo avx2 avx512f fpu"


def test_arm_has_no_model_name(tell: Tell) -> None:
    tell(ARM)
    assert facts.cpu_model() == "p"
    assert facts.cpu_features() == "m  asimd fp sve"


@pytest.mark.usefixtures("tell")
def test_without_cpuinfo() -> None:
    assert facts.cpu_model() == "p"
    assert facts.cpu_features() == "m p"


@pytest.mark.usefixtures("tell")
def test_the_machine_type_is_the_last_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert facts.cpu_model() == "m"


def test_features_are_sorted_and_those_of_the_first_processor(tell: Tell) -> None:
    tell(X86)
    before = facts.cpu_features()
    tell(X86.replace("fpu avx2 avx512f", "avx512f fpu avx2").replace("another one", "yet another"))
    assert facts.cpu_features() == before
    tell(X86.replace("avx512f", ""))
    assert facts.cpu_features() != before


def test_the_real_processor() -> None:
    assert facts.cpu_model()
    assert facts.cpu_features().startswith(platform.machine())


def test_memory_is_pages_times_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    assert facts.total_memory() == 4_096_000


@pytest.mark.parametrize("error", [ValueError("unrecognized configuration name"), OSError(22, "Invalid argument")])
def test_total_memory_is_unknown_on_some_systems(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> int:
        raise error

    monkeypatch.setattr(os, "sysconf", refuse)
    assert facts.total_memory() is None
    monkeypatch.delattr(os, "sysconf")  # Windows
    assert facts.total_memory() is None


def test_the_real_memory() -> None:
    total, available = facts.total_memory(), facts.available_memory()
    assert total is not None
    assert available is not None
    assert 0 < available <= total


def test_logical_cpus_are_those_of_the_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 7})
    assert facts.logical_cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert facts.logical_cpus() == 12


def test_freed_memory_is_returned_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    facts.return_freed_memory()
    kept: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=kept.append))
        facts.return_freed_memory()
    assert kept == [0]

    def without_trim(_: None) -> object:
        return object()

    def no_library(_: None) -> Any:
        raise OSError("no such library")

    for library in (without_trim, no_library):
        monkeypatch.setattr(ctypes, "CDLL", library)
        facts.return_freed_memory()
