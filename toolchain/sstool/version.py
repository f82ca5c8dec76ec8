"""The version of this distribution and a digest of its code, also for packages run from a source folder."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

import ssruntime


def version() -> str:
    """Returns the installed version, or `0+source` if the distribution is not installed."""
    try:
        return metadata.version("sstool")
    except metadata.PackageNotFoundError:
        return "0+source"


def code_digest() -> str:
    """Returns a digest of the code of both packages, which tells results of different code apart."""
    digest = hashlib.sha256()
    for root in (Path(__file__).parent, Path(ssruntime.__file__).parent):
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()
