"""Publishes an artifact whole or not at all; an old artifact stays whole until the new one replaces it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ssruntime.artifact import DRAFT_GRAPH, MANIFEST, VERIFY_GRAPH, WEIGHTS
from ssruntime.errors import ArtifactError
from ssruntime.folder_lock import lock_if_possible, locked
from ssruntime.scratch import remove_tree, scratch_folder, sweep, sync, sync_tree
from ssruntime.strict_reader import parse_json

_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_ASIDE: Final = ".{name}.sstool-aside"
_NEXT: Final = ".{name}.sstool-next"
_NO_SUCH_CALL: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})
_NOT_ALLOWED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FOLDER_MODE: Final = 0o777
_MOUNT_POINT: Final = 4
"""Field of a line of `mountinfo` that holds the mount point, in which spaces are octal escapes."""


@contextlib.contextmanager
def staged_folder(out: Path, *, force: bool, is_ours: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yields a temporary folder next to `out`, and renames it to `out` if the block succeeds.

    If the block fails, the temporary folder is removed. What publishing needs of the file system is tried
    before the block runs.

    Args:
        out: folder that the artifact is to have. Missing parents are created, and removed again if the block
            fails.
        force: whether to replace an existing artifact, or an empty folder, at `out`.
        is_ours: returns whether an existing folder may be replaced; by default, an artifact may be replaced.

    Raises:
        ArtifactError: if `out` exists and may not be replaced, cannot be written, or the disk is full.
    """
    out = Path(os.path.realpath(out))
    recover(out)
    check_free(out, force=force, is_ours=is_ours)
    made = make_parents(out.parent)
    try:
        with scratch_folder(out.parent, out.name) as folder:
            _rehearse(folder)
            yield folder
            _publish(folder, out, force=force, is_ours=is_ours)
    except BaseException as err:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(err, OSError):
            raise write_error(out, err) from err
        raise


def check_free(out: Path, *, force: bool, is_ours: Callable[[Path], bool] | None = None) -> None:
    """Checks that `out` does not exist or may be replaced; `force` and `is_ours` are as in `staged_folder`.

    Raises:
        ArtifactError: if `out` exists without `force`, is not a folder, or holds files that may not be
            replaced.
    """
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ArtifactError(f"{out} is a file", "name a folder for the artifact with --out")
    if is_mount_point(out):
        raise ArtifactError(f"{out} is a mount point, which cannot be replaced", f"name a folder inside it: --out {out / 'artifact'}")
    if not force:
        raise ArtifactError(f"{out} already exists", "pass --force to replace it, or name another folder")
    if any(out.iterdir()) and not (is_ours or _is_ours)(out):
        kind = "artifact" if is_ours is None else "search"
        raise ArtifactError(f"{out} holds files but no sstool {kind}, so it is not replaced", "name another folder with --out")


def recover(out: Path) -> None:
    """Repairs an interrupted replacement of `out`, and removes temporary folders of ended processes.

    Only systems that cannot exchange two folders in one step need the repair. Call this before reading or
    writing `out`. Temporary folders of running processes are left alone.
    """
    _finish_replacement(out)
    aside = out.parent / _ASIDE.format(name=out.name)
    if not aside.is_dir():
        with contextlib.suppress(OSError):
            sweep(out.parent, out.name)
        return
    with contextlib.suppress(OSError):
        lock = lock_if_possible(aside)
        try:
            if out.exists():
                remove_tree(aside)
            else:
                aside.rename(out)
        finally:
            os.close(lock)
        sweep(out.parent, out.name)


def write_error(out: Path, err: OSError) -> ArtifactError:
    """Returns the error that tells the user why `out` could not be written.

    If the system's error names a file elsewhere, the error is about that file.
    """
    if isinstance(err.filename, str | bytes):
        named = Path(os.path.realpath(os.fsdecode(err.filename)))
        is_ours = named == out.parent or named.is_relative_to(out) or str(named).startswith(str(out.with_name(f".{out.name}.")))
        if not is_ours:
            return ArtifactError(f"{named} cannot be used: {err.strerror}", "check this file, its permissions and the room on its disk")
        if named.parent == out.parent and err.errno in _NOT_ALLOWED:
            return ArtifactError(f"{out.parent} cannot be written: {err.strerror}", "name a folder with --out that you may write beside")
    if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ArtifactError(
            f"no room on the disk for {out}: {err.strerror}", "free some space, or name a folder on another disk with --out"
        )
    if err.errno == errno.EBUSY:
        return ArtifactError(f"{out} cannot be replaced: {err.strerror}", "it may be a mount point: name a folder inside it with --out")
    return ArtifactError(f"{out} cannot be written: {err.strerror or err}", "name a folder that you may write with --out")


def is_mount_point(folder: Path) -> bool:
    """Returns whether a file system, or a folder of one (a bind mount), is mounted on a folder."""
    if folder.is_mount():
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    mounted = (line.split(" ")[_MOUNT_POINT] for line in lines)
    return str(folder.resolve()) in {re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point) for point in mounted}


def _rehearse(folder: Path) -> None:
    """Writes, flushes and renames something in a scratch folder, as publishing will.

    Raises:
        OSError: if the file system refuses.
    """
    first, second = folder / "rehearsal", folder / "rehearsal.renamed"
    first.mkdir()
    (first / MANIFEST).write_bytes(b"{}")
    sync_tree(first)
    _rename(first, second, _RENAME_NOREPLACE)
    remove_tree(second)


def make_parents(parent: Path) -> list[Path]:
    """Creates a folder and its missing parents; returns the created ones, innermost first.

    Raises:
        ArtifactError: if one of them cannot be created.
    """
    missing: list[Path] = []
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
    except OSError as err:
        raise write_error(missing[0], err) from err
    return missing


def _publish(folder: Path, out: Path, *, force: bool, is_ours: Callable[[Path], bool] | None) -> None:
    umask = os.umask(0)
    os.umask(umask)
    with contextlib.suppress(OSError):  # some file systems keep no modes
        folder.chmod(_FOLDER_MODE & ~umask)
    sync_tree(folder)
    check_free(out, force=force, is_ours=is_ours)  # again, because `out` may have appeared since
    if not out.exists():
        _rename(folder, out, _RENAME_NOREPLACE)
    else:
        _replace(folder, out)
    # After an exchange, the scratch folder's path holds the old artifact, which is removed with it.
    sync(out.parent)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Renames a folder in one step, and returns whether it did.

    Uses Linux's `renameat2` with `flag`. Where that is missing, it uses an ordinary rename, or does nothing
    for an exchange, which an ordinary rename cannot do.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None:
        if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
            return True
        code = ctypes.get_errno()
        if code not in _NO_SUCH_CALL:
            raise OSError(code, os.strerror(code), str(target))
    if flag == _RENAME_EXCHANGE:
        return False
    source.rename(target)
    return True


def _replace(folder: Path, out: Path) -> None:
    try:
        if not _rename(folder, out, _RENAME_EXCHANGE):
            _swap_aside(folder, out)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
        # A folder of a container image's lower layer can be removed, but not renamed. The new one gets a name
        # first under which `recover` finishes an interrupted replacement.
        upcoming = out.with_name(_NEXT.format(name=out.name))
        folder.rename(upcoming)
        sync(out.parent)
        remove_tree(out)
        upcoming.rename(out)


def _finish_replacement(out: Path) -> None:
    upcoming = out.with_name(_NEXT.format(name=out.name))
    if not upcoming.is_dir():
        return
    with contextlib.suppress(OSError):  # another process is at it, or the folder cannot be written
        lock = lock_if_possible(upcoming)
        try:
            remove_tree(out)
            upcoming.rename(out)
        finally:
            os.close(lock)


def _swap_aside(folder: Path, out: Path) -> None:
    """Replaces `out` in two steps. If the second one never happens, `recover` undoes the first."""
    aside = out.parent / _ASIDE.format(name=out.name)
    with locked(out):
        out.rename(aside)
        try:
            folder.rename(out)
        except BaseException:
            aside.rename(out)
            raise
        remove_tree(aside)


def _is_ours(folder: Path) -> bool:
    manifest = folder / MANIFEST
    try:
        data = parse_json(manifest.read_bytes())
    except OSError:
        return False
    except ValueError:
        # A truncated manifest still belongs to an artifact if the other files of an artifact are there.
        return all((folder / name).exists() for name in (VERIFY_GRAPH, DRAFT_GRAPH, WEIGHTS))
    return isinstance(data, dict) and "schema_version" in data and "drafts" in data
