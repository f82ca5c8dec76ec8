"""On a system without folder locks (Windows), both packages import.

Commands that need the locks are refused in one line.
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import subprocess
import sys
from pathlib import Path

import pytest

import ssruntime
from ssruntime.backends.device import HostDevice

REPOSITORY = Path(__file__).resolve().parents[2]
REFUSAL = "error: this system has no folder locks (fcntl), which sstool needs; hint: "

# Removes what Python has on Linux but not on Windows, and what the packages or their imports may use.
# asyncio is imported first, because on Linux it needs fcntl.
LIKE_WINDOWS = """
import asyncio, ctypes, mmap, os, signal, sys

for module in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[module] = None
for holder, names in {
    mmap: ("MAP_PRIVATE", "MAP_ANONYMOUS", "MAP_ANON", "MAP_SHARED", "MADV_NOHUGEPAGE"),
    os: ("O_DIRECTORY", "geteuid", "getuid", "sched_getaffinity", "sysconf", "statvfs"),
    signal: ("SIGKILL", "SIGHUP", "SIGALRM"),
}.items():
    for name in names:
        if hasattr(holder, name):
            delattr(holder, name)


class CDLL(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        if name is None:
            raise TypeError("argument of type 'NoneType' is not iterable")
        super().__init__(name, *args, **kwargs)


ctypes.CDLL = CDLL
"""


def like_windows(code: str) -> subprocess.CompletedProcess[str]:
    """Returns the outcome of code in a fresh interpreter without the parts of Python that Windows lacks."""
    return subprocess.run([sys.executable, "-c", LIKE_WINDOWS + code], capture_output=True, text=True, check=False, timeout=300)


def sstool(*args: str) -> subprocess.CompletedProcess[str]:
    return like_windows(f"from sstool.cli.main import run; sys.exit(run({list(args)!r}))")


def test_every_module_imports() -> None:
    names = [
        ".".join(path.relative_to(REPOSITORY / root).with_suffix("").parts).removesuffix(".__init__")
        for root, package in (("runtime", "ssruntime"), ("toolchain", "sstool"))
        for path in sorted((REPOSITORY / root / package).rglob("*.py"))
        if path.parent.name != "workers"  # programs for the environments of other engines
        if path.name != "ray_app.py" or importlib.util.find_spec("ray") is not None
    ]
    assert {"ssruntime", "ssruntime.backends.device", "sstool.cli.main", "sstool.artifact_files.publish"} <= set(names)
    done = like_windows(f"import importlib\nfor name in {names!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_help_is_shown() -> None:
    done = sstool("--help")
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout


def test_what_reads_an_artifact_alone_works(demo_artifact: Path) -> None:
    done = sstool("inspect", str(demo_artifact), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


@pytest.mark.parametrize("command", ["generate", "bench", "check", "export", "search", "search a checkpoint"])
def test_what_needs_locks_is_refused_in_one_line(command: str, demo_artifact: Path, demo_model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "import os"}\n', encoding="utf-8")
    artifact, model, out = str(demo_artifact), str(demo_model), str(tmp_path / "folder" / "out")
    args = {
        "generate": ("generate", artifact, "--prompt", "import os"),
        "bench": ("bench", artifact, "--prompts", str(prompts)),
        "check": ("check", artifact),
        "export": ("export", "--model", model, "--out", out, "--no-search"),
        "search": ("search", "--artifact", artifact),
        "search a checkpoint": ("search", "--model", model, "--out", out),
    }
    done = sstool(*args[command])
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(REFUSAL)
    assert done.stderr.count("\n") == 1, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_a_load_is_refused_before_the_artifact_is_read() -> None:
    done = like_windows("""
import ssruntime
try:
    ssruntime.load("nowhere")
except ssruntime.BackendUnavailableError as err:
    assert "no folder locks" in err.message and err.hint, err
else:
    raise AssertionError
""")
    assert done.returncode == 0, done.stderr


def test_a_kv_cache_without_anonymous_maps_decodes_the_same(demo_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ssruntime.GenerationConfig(max_new_tokens=12, temperature=0.0)
    with ssruntime.load(demo_artifact, threads=1, max_context=64) as engine:
        expected = engine.generate("def area(radius):", config).token_ids
    monkeypatch.delattr(mmap, "MAP_ANONYMOUS")
    assert HostDevice().reserve(5, "a test").pages is None
    with ssruntime.load(demo_artifact, threads=1, max_context=64) as engine:
        assert engine.generate("def area(radius):", config).token_ids == expected
