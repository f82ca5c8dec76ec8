"""A folder of hard links to a checkpoint's files, beside it, for libraries that take no symbolic links, or another config."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ssruntime.scratch import scratch_folder


@contextlib.contextmanager
def linked_folder(folder: Path, purpose: str) -> Iterator[Path]:
    """Gives a temporary folder with the same files, whatever symbolic links lead to them.

    They are hard links, or copies where the system has none between the two places; files that are mapped stay so after the folder is gone.
    It lies beside `folder`, or where temporary files go if nothing can be written there.

    Args:
        folder: the checkpoint.
        purpose: becomes part of the name.
    """
    root = folder.resolve()
    parent = root.parent if os.access(root.parent, os.W_OK) else Path(tempfile.gettempdir())
    with scratch_folder(parent, f"{root.name}-{purpose}") as scratch:
        for path in root.iterdir():
            if path.is_file():
                _link_or_copy(path.resolve(), scratch / path.name)
        yield scratch


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
