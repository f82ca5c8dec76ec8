"""A folder has one lock at a time, and the end of a process releases its locks."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from ssruntime import folder_lock
from ssruntime.errors import BackendUnavailableError
from ssruntime.folder_lock import locked, require_locks, try_lock

LONG: Final = 60.0
"""Seconds that no test waits unless a lock is never released."""
HOLD: Final = """
import sys
from pathlib import Path
from ssruntime.folder_lock import try_lock

handle = try_lock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_lock_is_held_until_its_handle_is_closed(tmp_path: Path) -> None:
    handle = try_lock(tmp_path)
    try:
        before = open_files()
        with pytest.raises(BlockingIOError):
            try_lock(tmp_path)
        assert open_files() == before
        assert not os.get_inheritable(handle)
    finally:
        os.close(handle)
    os.close(try_lock(tmp_path))


def test_every_folder_has_its_own_lock(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    with locked(tmp_path), locked(inner):
        pass


def test_a_block_holds_the_lock_until_it_ends(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(BlockingIOError):
        try_lock(tmp_path)
    os.close(try_lock(tmp_path))


def fail_within(folder: Path) -> None:
    with locked(folder):
        raise ArithmeticError


def test_a_block_that_fails_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError):
        fail_within(tmp_path)
    os.close(try_lock(tmp_path))


def test_a_block_begins_once_the_lock_is_released(tmp_path: Path) -> None:
    events: list[str] = []

    def enter() -> None:
        with locked(tmp_path):
            events.append("entered")

    handle = try_lock(tmp_path)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(enter)
        events.append("released")
        os.close(handle)
        waiting.result(LONG)
    assert events == ["released", "entered"]


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "locked\n"
            with pytest.raises(BlockingIOError):
                try_lock(tmp_path)
        finally:
            child.kill()
    os.close(try_lock(tmp_path))


@pytest.mark.parametrize("lock", [try_lock, lambda folder: locked(folder).__enter__()])
@pytest.mark.parametrize(("name", "error"), [("missing", FileNotFoundError), ("file", NotADirectoryError)])
def test_only_folders_can_be_locked(lock: object, name: str, error: type[OSError], tmp_path: Path) -> None:
    assert callable(lock)
    (tmp_path / "file").touch()
    with pytest.raises(error):
        lock(tmp_path / name)


def test_a_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_locks()
    monkeypatch.setattr(folder_lock, "fcntl", None)
    for use in (require_locks, lambda: try_lock(tmp_path)):
        with pytest.raises(BackendUnavailableError, match="no folder locks") as caught:
            use()
        assert "Linux" in caught.value.hint
