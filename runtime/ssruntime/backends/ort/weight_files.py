"""Where the weights of an artifact's graphs really lie: ONNX Runtime reads them from one folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from ssruntime.artifact import Artifact
from ssruntime.backends.onnx_wire import with_locations
from ssruntime.errors import ArtifactError

_DIGITS: Final = 32
"""Digits of a file's digest that name it in a cache entry."""
_SECOND: Final = 10**9


def with_real_weights(artifact: Artifact, graph: bytes) -> tuple[bytes, Path]:
    """Returns a graph of the artifact, and the folder in which its weights files lie.

    The files may be links out of the artifact's folder, as in the cache of a model hub. ONNX Runtime follows
    no such link, so the graph is pointed at the files that they lead to.

    Raises:
        ArtifactError: if the files lie in different folders.
    """
    manifest = artifact.manifest
    names = {*manifest.weights, *(name for draft in manifest.drafts for name in draft.weights)}
    real = {name: artifact.path(name).resolve() for name in names}
    folder = artifact.folder.resolve()
    if all(path == folder / name for name, path in real.items()):
        return graph, artifact.folder
    folders = {path.parent for path in real.values()}
    if len(folders) > 1:
        raise ArtifactError(f"{artifact.folder}: the weights files are links to different folders", "copy the files themselves")
    return with_locations(graph, {name: path.name for name, path in real.items()}), folders.pop()


def name_by_content(digest: str) -> str:
    """Returns the name of a weights file that is put beside others, from its SHA-256 (hexadecimal)."""
    return f"{digest[:_DIGITS]}.bin"


def place(file: Path, target: Path) -> None:
    """Puts a file in a place that is named by its content, as a link where possible, unless it is there.

    What is there may be damaged, so it must be the same file, or look like a copy.

    Raises:
        OSError: if the file can be neither linked nor copied.
    """
    if not target.exists() or not (target.samefile(file) or _looks_like(target, file)):
        _link_or_copy(file, target)


def _looks_like(copy: Path, file: Path) -> bool:
    one, other = copy.stat(), file.stat()
    return one.st_size == other.st_size and is_time_of(one.st_mtime_ns, other.st_mtime_ns)


def is_time_of(found: int, recorded: int) -> bool:
    """Returns whether a time is the recorded modification time, of which copies may keep whole seconds."""
    return found in (recorded, recorded - recorded % _SECOND)


def _link_or_copy(source: Path, target: Path) -> None:
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        os.link(source, scratch)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, scratch)
    scratch.replace(target)  # another process may have been first, with the same content
