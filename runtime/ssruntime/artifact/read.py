"""Reads an artifact's folder and checks it before any engine opens."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ssruntime.artifact.file_names import BASE_GRAPH, CHECKPOINT_CONFIG, MANIFEST, VERIFY_GRAPH
from ssruntime.artifact.manifest import SCHEMA_VERSION, Manifest
from ssruntime.errors import ArtifactError
from ssruntime.strict_reader import parse_json, read_content, read_record


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact folder whose manifest has been read and whose files are present with the listed sizes."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Returns the path of one of the artifact's files."""
        return self.folder / name

    def base_graph(self) -> Path:
        """Returns the path of the graph that drafts are made from."""
        return self.path(BASE_GRAPH if BASE_GRAPH in self.manifest.files else VERIFY_GRAPH)


def read_artifact(folder: Path) -> Artifact:
    """Returns the artifact in a folder, after checking that all listed files have the listed sizes.

    Raises:
        ArtifactError: if the folder is missing or is no artifact, its manifest is damaged or has another
            schema version, or a file is missing, has another size or cannot be read.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing from the artifact", "export the model again")
        if path.stat().st_size != entry.size:
            raise ArtifactError(f"{path} has {path.stat().st_size} bytes, but the manifest lists {entry.size}", "export the model again")
        if not os.access(path, os.R_OK):
            raise ArtifactError(f"{path} cannot be read: {os.strerror(errno.EACCES)}", "check its permissions")
    own = [name for draft in manifest.drafts for name in (draft.graph, *draft.weights)]
    for needed in (VERIFY_GRAPH, *manifest.weights, *own):
        if needed not in manifest.files:
            raise ArtifactError(f"{folder / MANIFEST} does not list {needed}", "export the model again")
    names = [draft.name for draft in manifest.drafts]
    if len(set(names)) < len(names):
        raise ArtifactError(f"{folder / MANIFEST}: two drafts have the same name", "export the model again")
    return Artifact(folder=folder, manifest=manifest)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not folder.exists():
        raise ArtifactError(f"no artifact at {folder}", "make one with: sstool export --model MODEL --out DIR")
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is a file, not an artifact's folder", "name the folder that holds manifest.json")
    if not path.exists():
        if (folder / CHECKPOINT_CONFIG).exists():
            raise ArtifactError(
                f"{folder} is a model folder, not an artifact", f"export it first: sstool export --model {folder} --out DIR"
            )
        raise ArtifactError(f"{folder} holds no {MANIFEST}, so it is not an artifact", "make one with: sstool export")
    content = read_content(path, error=ArtifactError)
    try:
        data = parse_json(content)
    except ValueError as err:
        raise ArtifactError(f"{path} cannot be read: {err}", "export the model again") from err
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version!r}, this sstool reads {SCHEMA_VERSION}",
            "export the model again, or use the sstool that wrote it",
        )
    return read_record(Manifest, data, where=str(path), error=ArtifactError)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_digests(artifact: Artifact, on_file: Callable[[str], None] | None = None, *, names: Collection[str] | None = None) -> None:
    """Hashes files of the artifact and compares them with the manifest.

    Args:
        artifact: the artifact to check.
        names: names of the files; None for all that the manifest lists.
        on_file: called with the name of each file before it is hashed.

    Raises:
        ArtifactError: if the content of a file has changed; the message names the first such file.
    """
    for name in artifact.manifest.files if names is None else names:
        if on_file is not None:
            on_file(name)
        if file_digest(artifact.path(name)) != artifact.manifest.files[name].sha256:
            raise ArtifactError(f"{artifact.path(name)} does not match its digest in the manifest", "export the model again")
