"""The folder of a running search, `<out>.search/`: it outlives a kill, so that the search can be resumed, and one process has it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ssruntime.errors import ArtifactError, RecipeError
from ssruntime.folder_lock import try_lock
from ssruntime.scratch import remove_tree, sweep
from sstool.artifact_files.publish import make_parents
from sstool.search.log.read import SEARCH
from sstool.search.log.records import LATENCY, REPORT, SKIP_SET, TEXTS, TRIALS

if TYPE_CHECKING:
    from sstool.search.run import Progress

logger = logging.getLogger(__name__)

ARTIFACT: Final = "artifact"
CHECKPOINT: Final = "checkpoint.json"
"""What the artifact that is made for a checkpoint's search was made of."""
_OURS: Final = frozenset({TRIALS, LATENCY, TEXTS, ARTIFACT, CHECKPOINT, REPORT, SKIP_SET})


@contextlib.contextmanager
def work_folder(out: Path, *, resume: bool, force: bool = False) -> Iterator[Path]:
    """Gives the folder of a search for `out`, locked against other processes; it is gone when the block ends well.

    When the block fails, what could be resumed is kept.

    Args:
        out: what the search is for.
        resume: keep what an interrupted search left there.
        force: without `resume`, clear what an interrupted search left there, even if that could be resumed.

    Raises:
        RecipeError: if there is nothing to resume, or something and nothing was said about it, or another process searches there.
        ArtifactError: if the folder holds something else, or cannot be written.
    """
    folder = _place(out)
    check_work(out, resume=resume, force=force)
    parents = make_parents(folder.parent)
    handle = _lock(folder)
    try:
        _check_content(out, resume=resume, force=force)
        if not resume:
            _clear(folder)
        try:
            yield folder
        except BaseException as err:
            if not _is_resumable(folder):
                remove_tree(folder)
                with contextlib.suppress(OSError):
                    for parent in parents:
                        parent.rmdir()
            elif isinstance(err, KeyboardInterrupt):
                logger.warning("the search was interrupted; --resume goes on with it (%s)", folder)
            raise
        remove_tree(folder)
    finally:
        os.close(handle)


def check_work(out: Path, *, resume: bool, force: bool) -> None:
    """Refuses what `work_folder` would refuse, as far as it can be seen without it.

    Raises:
        RecipeError: if there is nothing to resume, or something and nothing was said about it, or another process searches there.
        ArtifactError: if the folder holds something else, or cannot be written.
    """
    folder = _place(out)
    handle = _lock(folder) if folder.is_dir() else None
    try:
        _check_content(out, resume=resume, force=force)
    finally:
        if handle is not None:
            os.close(handle)


def _check_content(out: Path, *, resume: bool, force: bool) -> None:
    folder = _place(out)
    if resume and not _is_resumable(folder):
        raise RecipeError(
            f"there is no interrupted search to resume: {folder / TRIALS} is missing", "leave out --resume; a search that ended needs none"
        )
    if resume or not folder.is_dir():
        return
    for name in _OURS:
        sweep(folder, name)
    if {path.name for path in folder.iterdir()} - _OURS:
        raise ArtifactError(f"{folder} holds files that are no search's, so it is not cleared", "move them, or name another --out")
    trials = _num_trials(folder / TRIALS)
    if trials and not force and not _is_published(folder / TRIALS, out):
        raise RecipeError(f"{folder} holds an interrupted search of {trials} trials", "go on with --resume, or begin anew with --force")


def describe_progress(progress: Progress) -> str:
    """Returns a search's progress as one line."""
    parts = [f"{progress.part} {progress.done} of {progress.total}" if progress.total > 1 else progress.part]
    if progress.best is not None:
        parts.append(f"best so far {progress.best:.2f} x plain")
    if math.isfinite(progress.seconds_left):
        left = max(0, round(progress.seconds_left))
        parts.append(f"{left // 60}:{left % 60:02d} left")
    return ", ".join(parts)


def _lock(folder: Path) -> int:
    """Makes the folder if it is not there, and returns an open, locked handle of it."""
    while True:
        try:
            folder.mkdir(exist_ok=True)
            handle = try_lock(folder)
        except BlockingIOError:
            raise RecipeError(f"another process is searching in {folder}", "wait for it, or name another --out") from None
        except OSError as err:
            raise ArtifactError(
                f"{folder} cannot be written: {err.strerror or err}", "name a folder that you may write with --out"
            ) from err
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == folder.stat().st_ino:
                return handle
        os.close(handle)  # its owner was done, and removed it between the two calls


def _is_resumable(folder: Path) -> bool:
    return (folder / TRIALS).exists() or (folder / TEXTS).exists()


def _place(out: Path) -> Path:
    resolved = Path(os.path.realpath(out))
    if not resolved.name:
        raise ArtifactError(f"{out} is no place for an artifact or a search", "name a folder with --out")
    return resolved.with_name(f"{resolved.name}.search")


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink()


def _num_trials(path: Path) -> int:
    try:
        return len(re.findall(rb'"kind": ?"trial"', path.read_bytes()))
    except FileNotFoundError:
        return 0
    except OSError as err:
        raise ArtifactError(f"{path} cannot be read: {err.strerror}", "make it readable, or name another --out") from err


def _is_published(trials: Path, out: Path) -> bool:
    """Whether a log is that of the result in `out`: a kill came between the result's getting its name and the folder's removal."""
    own = trials.read_bytes()
    return any(place.is_file() and place.read_bytes() == own for place in (out / TRIALS, out / SEARCH / TRIALS))
