"""The artifact folder: its manifest, and the checks a load makes before any engine opens."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ssruntime.errors import ArtifactError
from ssruntime.strict_reader import read_record

MANIFEST: Final = "manifest.json"
VERIFY_GRAPH: Final = "verify.onnx"
DRAFT_GRAPH: Final = "draft.onnx"
WEIGHTS: Final = "weights.bin"
SCHEMA_VERSION: Final = 2


@dataclass(frozen=True, kw_only=True)
class SkipSet:
    """Sublayers that a draft leaves out, as 0-based layer numbers in rising order."""

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TunedExit:
    """How long a draft goes on, as tuned for its skip set; what is None falls to the runtime's defaults."""

    exit: str | None = None
    exit_threshold: float | None = None
    max_draft: int | None = None
    max_alternatives: int | None = None


@dataclass(frozen=True, kw_only=True)
class DraftEntry:
    """One draft engine of an artifact.

    Attributes:
        name: of the draft.
        graph: its file.
        dtype: of its computation.
        skip: what it leaves out.
        tuned: the exit that goes with that.
        mode: how a load decodes unless told: `speculative`, or `plain` where a search found that the draft does not pay.
    """

    name: str
    graph: str
    dtype: str
    skip: SkipSet
    tuned: TunedExit = TunedExit()
    mode: str = "speculative"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the draft and its exit were found, and on what machine: elsewhere they may not be the best.

    Attributes:
        speedup: measured over plain decoding, by the weights of the kinds of text; None where nothing was measured.
        cpu: the processor's model name.
        threads: of an engine.
        onnxruntime: version.
        trials: candidates that were tried.
        remark: what the search said of itself.
    """

    speedup: float | None
    cpu: str
    threads: int
    onnxruntime: str
    trials: int
    remark: str


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What was exported: where it came from and its sizes. `window` is the narrowest of its layers', None where all see everything."""

    source: str
    revision: str | None
    family: str
    architecture: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_parameters: int
    weight_bytes: int
    window: int | None


@dataclass(frozen=True, kw_only=True)
class KvLayout:
    """The cache of one sequence: two buffers `dtype[1, kv_heads, context, head_dim]` a layer."""

    num_layers: int
    kv_heads: int
    head_dim: int
    dtype: str

    def bytes_per_token(self) -> int:
        """Returns the cache's bytes for one token of one sequence."""
        return 2 * self.num_layers * self.kv_heads * self.head_dim * (2 if self.dtype == "fp16" else 4)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` holds. `files` lists every file of the artifact but the manifest and `search/`."""

    schema_version: int
    model: ModelInfo
    target: str
    dtype: str
    max_context: int
    kv: KvLayout
    drafts: tuple[DraftEntry, ...]
    files: dict[str, FileEntry]
    tools: dict[str, str]
    gate: dict[str, Any] = field(default_factory=dict)
    tuning: Tuning | None = None

    def to_json(self) -> str:
        """Returns the manifest as indented JSON that ends in a line break."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A folder whose manifest was read and whose files are present with the right sizes."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Returns the path of one of the artifact's files."""
        return self.folder / name


def read_artifact(folder: Path) -> Artifact:
    """Reads the manifest and checks that every file it lists is there with its size.

    Raises:
        ArtifactError: if the folder is missing, is a checkpoint instead, or its manifest or a file is cut, missing, or of a newer schema.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing from the artifact", "export the model again")
        if path.stat().st_size != entry.size:
            raise ArtifactError(f"{path} has {path.stat().st_size} bytes where the manifest says {entry.size}", "export the model again")
    for needed in (VERIFY_GRAPH, WEIGHTS, *(d.graph for d in manifest.drafts)):
        if needed not in manifest.files:
            raise ArtifactError(f"{folder / MANIFEST} does not list {needed}", "export the model again")
    return Artifact(folder=folder, manifest=manifest)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not folder.exists():
        raise ArtifactError(f"no artifact at {folder}", "make one with: sstool export --model MODEL --out DIR")
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is a file, not an artifact's folder", "name the folder that holds manifest.json")
    if not path.exists():
        if (folder / "config.json").exists():
            raise ArtifactError(
                f"{folder} is a model folder, not an artifact", f"export it first: sstool export --model {folder} --out DIR"
            )
        raise ArtifactError(f"{folder} holds no {MANIFEST}, so it is not an artifact", "make one with: sstool export")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as err:
        raise ArtifactError(f"{path} cannot be read: {err}", "export the model again") from err
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version!r}, this sstool reads {SCHEMA_VERSION}",
            "use the sstool that wrote it, or export the model again",
        )
    return read_record(Manifest, data, where=str(path), error=ArtifactError)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_digests(artifact: Artifact, on_file: Callable[[str], None] | None = None) -> None:
    """Hashes every file of the artifact and compares it with the manifest.

    Args:
        artifact: the artifact to check.
        on_file: called with each file's name before it is hashed.

    Raises:
        ArtifactError: naming the first file whose content changed.
    """
    for name, entry in artifact.manifest.files.items():
        if on_file is not None:
            on_file(name)
        if file_digest(artifact.path(name)) != entry.sha256:
            raise ArtifactError(f"{artifact.path(name)} does not match its digest in the manifest", "export the model again")
