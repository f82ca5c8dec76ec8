"""The folder of a running search, `<out>.search/`: it outlives a kill, so that the search can be resumed, and one process has it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ssruntime.errors import ArtifactError, RecipeError
from ssruntime.folder_lock import try_lock
from ssruntime.scratch import remove_tree, sweep
from sstool.artifact_files.publish import make_parents
from sstool.jsonl_log import whole_lines
from sstool.search.log.records import LATENCY, REPORT, SEARCH_FOLDER, SKIP_SET, TEXTS, TRIALS

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
    """Returns how many trials a log holds; 0 for none, or where its lines are damaged, which a resumed search then says."""
    try:
        lines = whole_lines(path.read_bytes())
    except FileNotFoundError:
        return 0
    except OSError as err:
        raise ArtifactError(f"{path} cannot be read: {err.strerror}", "make it readable, or name another --out") from err
    return sum(_kind_of(line) == "trial" for line in lines)


def _kind_of(line: bytes) -> object:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return data.get("kind") if isinstance(data, dict) else None


def _is_published(trials: Path, out: Path) -> bool:
    """Whether a log is that of the result in `out`: a kill came between the result's getting its name and the folder's removal."""
    own = trials.read_bytes()
    return any(place.is_file() and place.read_bytes() == own for place in (out / TRIALS, out / SEARCH_FOLDER / TRIALS))
