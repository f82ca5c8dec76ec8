"""Locks on folders between processes: the kernel drops a lock when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ssruntime.errors import BackendUnavailableError

try:
    import fcntl
except ImportError:  # Windows, where the packages import and `require_locks` says what is missing
    fcntl = None  # type: ignore[assignment]


def require_locks() -> None:
    """Checks that this system has folder locks, which writing and loading artifacts safely needs.

    Raises:
        BackendUnavailableError: on Windows.
    """
    if fcntl is None:
        raise BackendUnavailableError(
            "this system has no folder locks (fcntl), which sstool needs", "run it on Linux, or in WSL on Windows"
        )


def try_lock(folder: Path) -> int:
    """Locks a folder for this process.

    Returns:
        An open handle; closing it (`os.close`) unlocks the folder.

    Raises:
        BlockingIOError: if another handle holds the lock.
        OSError: if the folder cannot be opened or locked.
    """
    return _lock(folder, wait=False)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until a folder can be locked, and holds the lock while the block runs.

    Raises:
        OSError: if the folder cannot be opened or locked.
    """
    handle = _lock(folder, wait=True)
    try:
        yield
    finally:
        os.close(handle)


def _lock(folder: Path, *, wait: bool) -> int:
    require_locks()
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle
