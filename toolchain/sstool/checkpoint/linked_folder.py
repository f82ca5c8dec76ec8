"""A temporary folder of hard links to a checkpoint's files: no symbolic links, and files can be replaced."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ssruntime.errors import CheckpointError
from ssruntime.scratch import scratch_folder


@contextlib.contextmanager
def linked_folder(folder: Path, purpose: str) -> Iterator[Path]:
    """Yields a temporary folder with the checkpoint's files; symbolic links are resolved.

    The files are hard links, or copies where the file system allows no hard link. Memory-mapped files stay
    valid after the folder is removed. The folder is created next to `folder`, or in the system's temporary
    folder if that place is not writable.

    Args:
        folder: folder of the checkpoint.
        purpose: word that becomes part of the temporary folder's name.
    """
    root = folder.resolve()
    parent = root.parent if os.access(root.parent, os.W_OK) else Path(tempfile.gettempdir())
    with scratch_folder(parent, f"{root.name}-{purpose}") as scratch:
        for path in root.iterdir():
            if path.is_file():
                link_or_copy(path.resolve(), scratch / path.name)
        yield scratch


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` a hard link to a file, or a copy where the file system allows no hard link.

    Raises:
        CheckpointError: if the file can neither be linked nor copied.
    """
    try:
        target.hardlink_to(source)
    except OSError:
        try:
            shutil.copyfile(source, target)
        except OSError as err:
            raise CheckpointError(
                f"{source} cannot be copied to {target.parent}: {err.strerror or err}",
                "free some space there, or set TMPDIR",
            ) from err
