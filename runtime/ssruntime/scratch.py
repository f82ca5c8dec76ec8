"""Scratch folders: published by one rename, and removed safely after their process was killed.

A process locks each of its scratch folders (`flock` on the folder itself); the kernel drops the lock when the
process ends. A scratch folder that another process can lock is therefore a leftover, and can be removed.
Where the file system has no such locks, leftovers stay.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ssruntime.folder_lock import UNSUPPORTED, lock_if_possible, try_lock

_SUFFIX: Final = ".sstool-tmp"


@contextlib.contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yields a new, empty, locked folder `.{name}.{random}.sstool-tmp` in `parent`.

    When the block ends, the folder is removed, unless the block has renamed it. Leftovers of the same name
    are removed first.

    Raises:
        OSError: if the folder cannot be made.
    """
    sweep(parent, name)
    folder, lock = _make_locked(parent, name)
    try:
        yield folder
    finally:
        remove_tree(folder)
        os.close(lock)


def write_whole(path: Path, content: bytes) -> None:
    """Writes or replaces a file atomically: even after a crash, it has either the old or the new content.

    Raises:
        OSError: if the disk refuses.
    """
    with scratch_folder(path.parent, path.name) as scratch:
        fresh = scratch / path.name
        fresh.write_bytes(content)
        sync(fresh)
        fresh.replace(path)
    sync(path.parent)


def sweep(parent: Path, name: str) -> None:
    """Removes the scratch folders of a name that no running process has locked."""
    for folder in parent.glob(f".{_escape(name)}.*{_SUFFIX}"):
        try:
            lock = try_lock(folder)
        except OSError:
            continue
        remove_tree(folder)
        os.close(lock)


def retire(folder: Path, name: str) -> None:
    """Removes a folder, if it exists; a killed process leaves it complete, or as a leftover scratch folder.

    Args:
        folder: the folder to remove.
        name: name of the scratch folder that it becomes first, for `sweep`.

    Raises:
        OSError: if the folder cannot be renamed.
    """
    doomed = folder.with_name(f".{name}.{secrets.token_hex(6)}{_SUFFIX}")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    remove_tree(doomed)


def remove_tree(folder: Path) -> None:
    """Removes a folder that this user owns, read-only folders included; leaves what cannot be removed.

    Does not follow symbolic links.
    """
    if folder.is_symlink():
        return
    _make_writable(folder)
    for root, names, _ in os.walk(folder):  # lists a subfolder after the loop below has made it readable
        for name in names:
            _make_writable(Path(root, name))
    shutil.rmtree(folder, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Flushes all files in a folder, then the folder itself, to disk; subfolders themselves are not flushed.

    Raises:
        OSError: if the disk refuses.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Flushes one file or folder to disk; a folder only where the file system can.

    Raises:
        OSError: if the disk refuses.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as err:
        if err.errno not in UNSUPPORTED or not path.is_dir():
            raise
    finally:
        os.close(handle)


def _make_locked(parent: Path, name: str) -> tuple[Path, int]:
    while True:
        folder = parent / f".{name}.{secrets.token_hex(6)}{_SUFFIX}"
        folder.mkdir(mode=0o700)
        try:
            lock = lock_if_possible(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # between the two calls, the sweep of another process has locked or removed the folder
        if folder.exists() and os.fstat(lock).st_ino == folder.stat().st_ino:
            return folder, lock
        os.close(lock)


def _make_writable(folder: Path) -> None:
    if not folder.is_symlink():  # chmod would change the target of a link
        with contextlib.suppress(OSError):
            folder.chmod(0o700)


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
