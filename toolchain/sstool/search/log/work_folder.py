"""The work folder of a search, `<out>.search/`: one process uses it, and a killed search resumes from it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ssruntime.errors import ArtifactError, RecipeError
from ssruntime.folder_lock import NoFolderLocksError, lock_if_possible, try_lock
from ssruntime.scratch import remove_tree, sweep
from ssruntime.strict_reader import parse_json
from sstool.artifact_files.publish import make_parents
from sstool.jsonl_log import whole_lines
from sstool.quantize.low_bit_draft import LowBitStore
from sstool.search.log.records import KIND_OF, LATENCY, REPORT, SEARCH_FOLDER, SKIP_SET, TEXTS, TRIALS, Trial

logger = logging.getLogger(__name__)

ARTIFACT: Final = "artifact"
CHECKPOINT: Final = "checkpoint.json"
"""The file that identifies the checkpoint from which the folder's artifact was exported."""
LOW_BIT_WEIGHTS: Final = "int4.bin"
"""The file of int4 weights that candidates share; a search that is resumed makes it again."""
_OURS: Final = frozenset({TRIALS, LATENCY, TEXTS, ARTIFACT, CHECKPOINT, LOW_BIT_WEIGHTS, REPORT, SKIP_SET})


@contextlib.contextmanager
def work_folder(out: Path, *, resume: bool, force: bool = False) -> Iterator[Path]:
    """Yields the work folder of a search, locked against other processes; removes it if the block succeeds.

    If the block fails, the folder is kept if the search can be resumed from it.

    Args:
        out: output folder of the search.
        resume: whether to keep what an interrupted search left in the work folder.
        force: whether to clear, without `resume`, even an interrupted search that could be resumed.

    Raises:
        RecipeError: if there is nothing to resume, if there is an interrupted search but neither `resume` nor
            `force` is set, or if another process uses the folder.
        ArtifactError: if the folder holds other files, or cannot be written.
    """
    folder = _work_path(out)
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
            (folder / LOW_BIT_WEIGHTS).unlink(missing_ok=True)
            if not _is_resumable(folder):
                remove_tree(folder)
                with contextlib.suppress(OSError):
                    for parent in parents:
                        parent.rmdir()
            elif isinstance(err, KeyboardInterrupt):
                logger.warning("the search was interrupted; continue it with --resume (%s)", folder)
            raise
        remove_tree(folder)
    finally:
        os.close(handle)


def store_within(folder: Path, room: int) -> LowBitStore | None:
    """Returns a new store for the int4 weights of candidates in a work folder.

    Args:
        folder: the work folder.
        room: most bytes of int4 weights that one draft may have; 0 gives None.
    """
    return LowBitStore(folder / LOW_BIT_WEIGHTS, room) if room else None


def check_work(out: Path, *, resume: bool, force: bool) -> None:
    """Makes the checks of `work_folder`, without creating or clearing the folder.

    Raises:
        RecipeError: if there is nothing to resume, if there is an interrupted search but neither `resume` nor
            `force` is set, or if another process uses the folder.
        ArtifactError: if the folder holds other files, or cannot be written.
    """
    folder = _work_path(out)
    handle = _lock(folder) if folder.is_dir() else None
    try:
        _check_content(out, resume=resume, force=force)
    finally:
        if handle is not None:
            os.close(handle)


def _check_content(out: Path, *, resume: bool, force: bool) -> None:
    """Refuses a folder that `resume` cannot continue, or that may not be cleared without it."""
    folder = _work_path(out)
    if resume and not _is_resumable(folder):
        raise RecipeError(f"there is no interrupted search to resume: {folder / TRIALS} is missing", "omit --resume to begin a search")
    if resume or not folder.is_dir():
        return
    for name in _OURS:
        sweep(folder, name)
    if {path.name for path in folder.iterdir()} - _OURS:
        raise ArtifactError(f"{folder} holds files that no search wrote, so it is not cleared", "move these files, or name another --out")
    trials = _num_trials(folder / TRIALS)
    if trials and not force and not _is_published(folder / TRIALS, out):
        raise RecipeError(
            f"{folder} holds an interrupted search of {trials} trials", "continue it with --resume, or discard it with --force"
        )


def _lock(folder: Path) -> int:
    """Returns an open, locked handle of the folder, which is created if it does not exist."""
    while True:
        try:
            folder.mkdir(exist_ok=True)
            handle = try_lock(folder)
        except NoFolderLocksError:
            logger.warning("the file system of %s has no locks: make sure that no other process searches there", folder)
            return lock_if_possible(folder)
        except BlockingIOError:
            raise RecipeError(f"another process is searching in {folder}", "wait for it, or name another --out") from None
        except OSError as err:
            raise ArtifactError(f"{folder} cannot be written: {err.strerror or err}", "name a writable folder with --out") from err
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == folder.stat().st_ino:
                return handle
        os.close(handle)  # another process removed the folder between the two calls


def _is_resumable(folder: Path) -> bool:
    """Returns whether an interrupted search left trials or calibration texts."""
    return (folder / TRIALS).exists() or (folder / TEXTS).exists()


def _work_path(out: Path) -> Path:
    """Returns the work folder that belongs to an output folder."""
    resolved = Path(os.path.realpath(out))
    if not resolved.name:
        raise ArtifactError(f"{out} cannot be the folder of an artifact or a search", "name another folder with --out")
    return resolved.with_name(f"{resolved.name}.search")


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink()


def _num_trials(path: Path) -> int:
    """Returns the number of trials in a log. Damaged lines do not count; a resumed search reports them."""
    try:
        lines = whole_lines(path.read_bytes())
    except FileNotFoundError:
        return 0
    except OSError as err:
        raise ArtifactError(f"{path} cannot be read: {err.strerror}", "make it readable, or name another --out") from err
    return sum(_kind_of(line) == KIND_OF[Trial] for line in lines)


def _kind_of(line: bytes) -> object:
    """Returns the `kind` of a line; None if it has none or is damaged."""
    try:
        data = parse_json(line)
    except ValueError:
        return None
    return data.get("kind") if isinstance(data, dict) else None


def _is_published(trials: Path, out: Path) -> bool:
    """Returns whether a log is that of the result in `out`.

    That happens if a search was killed after it published its result and before it removed its work folder.
    """
    own = trials.read_bytes()
    return any(place.is_file() and place.read_bytes() == own for place in (out / TRIALS, out / SEARCH_FOLDER / TRIALS))
