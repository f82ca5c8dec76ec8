"""The version of this distribution."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Returns the installed version, or `0+source` if the distribution is not installed."""
    try:
        return metadata.version("sstool")
    except metadata.PackageNotFoundError:
        return "0+source"
