"""Temporary folders that are published by one rename, and whose debris after a kill is told from work in progress.

A scratch folder is locked (`flock` on the folder itself) as long as its maker lives; the kernel drops the lock with the process. So
whoever comes next may remove every scratch folder it can lock, and none other.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ssruntime.folder_lock import try_lock

_SUFFIX: Final = ".sstool-tmp"


@contextlib.contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """Makes an empty, locked folder `.{name}.{random}.sstool-tmp` in `parent`; removes it on the way out unless it was renamed.

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
    """Writes or replaces a file; whoever reads it meanwhile, and whatever happens, it is the old one or the new one.

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
    """Removes the scratch folders of that name which no living process holds."""
    for folder in parent.glob(f".{_escape(name)}.*{_SUFFIX}"):
        try:
            lock = try_lock(folder)
        except OSError:
            continue
        remove_tree(folder)
        os.close(lock)


def retire(folder: Path, name: str) -> None:
    """Removes a folder, if it is there, so that a kill on the way leaves it whole or as debris that `sweep` of that name removes.

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
    """Removes a folder of ours, also where folders in it were made read-only since; what cannot be removed is left."""
    if folder.is_symlink():
        return
    _make_writable(folder)
    for root, names, _ in os.walk(folder):  # lists a folder after its parent's loop has made it readable
        for name in names:
            _make_writable(Path(root, name))
    shutil.rmtree(folder, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Flushes a flat folder's files, then the folder, to disk.

    Raises:
        OSError: if the disk refuses.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Flushes one file or folder to disk.

    Raises:
        OSError: if the disk refuses.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_locked(parent: Path, name: str) -> tuple[Path, int]:
    while True:
        folder = parent / f".{name}.{secrets.token_hex(6)}{_SUFFIX}"
        folder.mkdir(mode=0o700)
        try:
            lock = try_lock(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # somebody's sweep came between the two calls and removes it
        if folder.exists() and os.fstat(lock).st_ino == folder.stat().st_ino:
            return folder, lock
        os.close(lock)


def _make_writable(folder: Path) -> None:
    if not folder.is_symlink():  # whose mode would be that of what it leads to
        with contextlib.suppress(OSError):
            folder.chmod(0o700)


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
