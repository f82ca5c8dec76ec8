"""The folder of a running search, `<out>.search/`: it outlives a kill, so that the search can be resumed, and one process has it."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ssruntime.errors import ArtifactError, RecipeError
from sstool.search.records import TRIALS

if TYPE_CHECKING:
    from sstool.search.run import Progress


@contextlib.contextmanager
def work_folder(out: Path, *, resume: bool) -> Iterator[Path]:
    """Gives the folder of a search for `out`, locked against other processes.

    Args:
        out: what the search is for.
        resume: keep what an interrupted search left there; otherwise it is cleared.

    Raises:
        RecipeError: if there is nothing to resume, or another process searches there.
        ArtifactError: if the folder holds something else, or cannot be written.
    """
    resolved = Path(os.path.realpath(out))
    folder = resolved.with_name(f"{resolved.name}.search")
    if resume and not (folder / TRIALS).exists():
        raise RecipeError(f"there is no interrupted search to resume: {folder / TRIALS} is missing", "leave out --resume")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as err:
        raise ArtifactError(f"{folder} cannot be written: {err.strerror or err}", "name a folder that you may write with --out") from err
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecipeError(f"another process is searching in {folder}", "wait for it, or name another --out") from None
        if not resume:
            _clear(folder)
        yield folder
    finally:
        os.close(handle)


def describe_progress(progress: Progress) -> str:
    """Returns a search's progress as one line."""
    parts = [f"{progress.part} {progress.done} of {progress.total}" if progress.total > 1 else progress.part]
    if progress.best is not None:
        parts.append(f"best so far {progress.best:.2f} x plain")
    if math.isfinite(progress.seconds_left):
        left = max(0, round(progress.seconds_left))
        parts.append(f"{left // 60}:{left % 60:02d} left")
    return ", ".join(parts)


def _clear(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    if names - {TRIALS, "latency.json", "texts.json", "artifact", "report.html", "skip_set.json"}:
        raise ArtifactError(f"{folder} holds files that are no search's, so it is not cleared", "move them, or name another --out")
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
