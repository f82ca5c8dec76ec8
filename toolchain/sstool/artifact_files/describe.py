"""What an artifact holds and what it costs to run, read from its manifest and from opening its engines once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ssruntime import BackendUnavailableError, load
from ssruntime.artifact import Manifest, read_artifact
from ssruntime.engine import DEFAULT_MAX_CONTEXT


@dataclass(frozen=True, kw_only=True)
class KvCost:
    """What one sequence's cache takes, in bytes.

    Attributes:
        bytes_per_token: for each token of context.
        default_context: tokens that a load makes room for unless told.
        bytes_at_default_context: the whole cache at that.
        bytes_at_max_context: the whole cache at the artifact's full context.
    """

    bytes_per_token: int
    default_context: int
    bytes_at_default_context: int
    bytes_at_max_context: int


@dataclass(frozen=True, kw_only=True)
class ArtifactDescription:
    """An artifact's manifest with what follows from it.

    Attributes:
        folder: where it lies, as named by the caller.
        manifest: what it says of itself.
        kv: memory of one sequence.
        packing: `shared`, `private (why)`, or `unknown (why)` where the engines cannot be opened here.
    """

    folder: Path
    manifest: Manifest
    kv: KvCost
    packing: str

    def to_json(self) -> dict[str, object]:
        """Returns what `inspect --json` prints: the manifest, with the cache's costs under `kv`, and `packing`."""
        data = asdict(self.manifest)
        return {**data, "kv": {**data["kv"], **asdict(self.kv)}, "packing": self.packing}


def describe_artifact(folder: Path) -> ArtifactDescription:
    """Reads an artifact and opens its engines, which packs its weights if this host has not yet.

    Raises:
        ArtifactError: if it is missing, damaged or of another schema.
    """
    manifest = read_artifact(folder).manifest
    per_token = manifest.kv.bytes_per_token()
    context = min(manifest.max_context, DEFAULT_MAX_CONTEXT)
    return ArtifactDescription(
        folder=folder,
        manifest=manifest,
        kv=KvCost(
            bytes_per_token=per_token,
            default_context=context,
            bytes_at_default_context=per_token * context,
            bytes_at_max_context=per_token * manifest.max_context,
        ),
        packing=_packing(folder),
    )


def _packing(folder: Path) -> str:
    try:
        with load(folder, max_sequences=1) as engine:
            return engine.backend.packing
    except BackendUnavailableError as err:
        return f"unknown ({err.message})"
