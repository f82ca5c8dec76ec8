"""A digest of the code of this distribution, also for packages run from a source folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import ssruntime


def code_digest() -> str:
    """Returns a digest of the code of both packages, which tells results of different code apart."""
    digest = hashlib.sha256()
    for root in (Path(__file__).parent, Path(ssruntime.__file__).parent):
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()
