"""The folder of everything that is kept on a host to be used again: packed weights, bit tests, journals."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns the cache's folder: `$SSTOOL_CACHE_DIR`, else `$XDG_CACHE_HOME/sstool`, else `~/.cache/sstool`.

    Raises:
        OSError: if neither variable is set and the user has no home directory.
    """
    named = os.environ.get("SSTOOL_CACHE_DIR")
    if named:
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache").absolute() / "sstool"
    except RuntimeError as err:  # the user has no home directory
        raise FileNotFoundError(errno.ENOENT, str(err)) from err
