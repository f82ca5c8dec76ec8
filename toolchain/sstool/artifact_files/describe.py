"""Describes what an artifact holds and costs to run, without opening or packing it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ssruntime.artifact import Artifact, Manifest, read_artifact
from ssruntime.backends.registry import target_of
from ssruntime.errors import BackendUnavailableError
from ssruntime.folder_lock import require_locks
from ssruntime.machine import default_threads
from ssruntime.preparation import context_limit


@dataclass(frozen=True, kw_only=True)
class KvCost:
    """Memory of one sequence's KV cache.

    Attributes:
        bytes_per_token: bytes for each token of context.
        default_context: context, in tokens, of an engine that is loaded with default settings.
        bytes_at_default_context: bytes at the default context.
        bytes_at_max_context: bytes at the artifact's largest context.
    """

    bytes_per_token: int
    default_context: int
    bytes_at_default_context: int
    bytes_at_max_context: int


@dataclass(frozen=True, kw_only=True)
class ArtifactDescription:
    """An artifact's manifest, and what it costs to run.

    Attributes:
        folder: folder of the artifact, as the caller named it.
        manifest: the artifact's manifest.
        kv: memory of one sequence's KV cache.
        packing: how processes hold the packed weights: `shared` (with a remark if the first load has yet to
            pack them), `private (reason)`, or `unknown (reason)` if the engines cannot be opened on this
            machine.
        exactness: whether decoding is bit-exact on this machine: `bits`, `near-tie (why)`, or `unknown
            (reason)` as for `packing`.
    """

    folder: Path
    manifest: Manifest
    kv: KvCost
    packing: str
    exactness: str

    def to_json(self) -> dict[str, object]:
        """Returns what `inspect --json` prints: the manifest, costs under `kv`, `packing` and `exactness`."""
        data = asdict(self.manifest)
        return {**data, "kv": {**data["kv"], **asdict(self.kv)}, "packing": self.packing, "exactness": self.exactness}


def describe_artifact(folder: Path) -> ArtifactDescription:
    """Returns the description of an artifact.

    Raises:
        ArtifactError: if the artifact is missing, damaged or of another schema.
    """
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    packing, exactness = _on_this_machine(artifact)
    per_token = manifest.kv.bytes_per_token()
    context = context_limit(manifest)
    return ArtifactDescription(
        folder=folder,
        manifest=manifest,
        kv=KvCost(
            bytes_per_token=per_token,
            default_context=context,
            bytes_at_default_context=per_token * context,
            bytes_at_max_context=per_token * manifest.max_context,
        ),
        packing=packing,
        exactness=exactness,
    )


def _on_this_machine(artifact: Artifact) -> tuple[str, str]:
    """Returns `packing` and `exactness`."""
    try:
        require_locks()
        target = target_of(artifact.manifest).load()
        # Imported here, because it needs ONNX Runtime.
        from sstool.artifact_files.bits_record import exactness
    except (BackendUnavailableError, ImportError) as err:
        unknown = f"unknown ({err.message if isinstance(err, BackendUnavailableError) else f'ONNX Runtime cannot be imported: {err}'})"
        return unknown, unknown
    return target.packing_state(artifact), exactness(artifact, default_threads())
