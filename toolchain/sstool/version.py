"""The version of this distribution, also where the packages are used from a source folder without being installed."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Returns the installed version, or `0+source` where nothing is installed."""
    try:
        return metadata.version("sstool")
    except metadata.PackageNotFoundError:
        return "0+source"
