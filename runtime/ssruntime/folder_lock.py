"""Locks on folders between processes: the kernel drops a lock when its process ends, however it ends.

Some file systems have no locks on folders, NFS and Lustre among them. Work there goes on without them.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ssruntime.errors import BackendUnavailableError

try:
    import fcntl
except ImportError:  # Windows, where the packages import and `require_locks` says what is missing
    fcntl = None  # type: ignore[assignment]


UNSUPPORTED: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""Errors by which file systems say that they cannot do something with a folder."""


class NoFolderLocksError(OSError):
    """The file system has no locks on folders."""


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
        NoFolderLocksError: if the file system has no such locks.
        OSError: if the folder cannot be opened or locked.
    """
    handle, is_locked = _lock(folder, wait=False)
    if not is_locked:
        os.close(handle)
        raise NoFolderLocksError(errno.ENOLCK, "the file system has no locks on folders", str(folder))
    return handle


def lock_if_possible(folder: Path) -> int:
    """Returns an open handle as `try_lock` does, without a lock where the file system has none."""
    return _lock(folder, wait=False)[0]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until a folder can be locked, and holds the lock while the block runs.

    Where the file system has no such locks, the block runs without one.

    Raises:
        OSError: if the folder cannot be opened or locked.
    """
    handle, _ = _lock(folder, wait=True)
    try:
        yield
    finally:
        os.close(handle)


def _lock(folder: Path, *, wait: bool) -> tuple[int, bool]:
    """Returns an open handle of a folder, and whether it holds the lock."""
    require_locks()
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno in UNSUPPORTED:
            return handle, False
        os.close(handle)
        raise
    return handle, True
