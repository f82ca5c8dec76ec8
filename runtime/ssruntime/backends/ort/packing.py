"""The packed-weights cache: weights in the layout of the CPU kernels, packed once, mapped by all processes.

By default, ONNX Runtime packs the weights for each session, in private memory. It can also save a session's
model with the packed weights in the external data file, and sessions that open that file map it. An entry of
the cache is such a file, made from the verify graph. When a graph of the artifact is opened (verify, step or
a draft), its initializers are replaced by those of the entry, which refer to the packed file. A draft with
weights of its own has an entry for these, made from its graph. The layout depends on the ONNX Runtime version
and the CPU's instruction set, so both are part of the entry's key, together with the digests of the graph and
the weights.

An entry appears by one rename and is removed by unlinking, never by truncation, because another process may
have it mapped. If the weights cannot be cached, for example on a full or read-only disk, each session packs
them privately, with one warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnxruntime as ort

from ssruntime.artifact import VERIFY_GRAPH, Artifact, DraftEntry, check_digests, file_digest
from ssruntime.backends.onnx_wire import external_data, external_initializers, moved, replace_initializers
from ssruntime.backends.ort.weight_files import is_time_of, with_real_weights
from ssruntime.cache_folder import cache_folder
from ssruntime.errors import ArtifactError
from ssruntime.folder_lock import locked
from ssruntime.machine import cpu_features
from ssruntime.scratch import retire, scratch_folder, sync_tree
from ssruntime.strict_reader import parse_json

logger = logging.getLogger(__name__)

OPTIMIZATION_LEVEL: Final = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
"""ONNX Runtime must not rewrite graphs: initializers are matched by name between a graph and its packed copy.

The exporter's passes leave nothing to optimize."""
EXTERNAL_FROM_BYTES: Final = 1024
"""Least size of a packed initializer; smaller ones stay in the graph, where shape inference needs them."""
DEFAULT_MAX_GB: Final = 64.0
_FORMAT: Final = 3
_GRAPH: Final = "packed.onnx"
_DATA: Final = "packed.bin"
_ENTRY: Final = "entry.json"
_SCRATCH: Final = "pack"


@dataclass(frozen=True, kw_only=True)
class PackedWeights:
    """A complete entry of the cache.

    Attributes:
        folder: the entry's folder, which contains the packed data file.
        digest: SHA-256 of the packed data file, hexadecimal.
        tensors: serialized TensorProtos by initializer name; they refer to the packed data file.
        originals: the artifact's TensorProtos of the initializers that the entry is for: all of the verify
            graph, or those that only a draft has. They refer to the weights files.
    """

    folder: Path
    digest: str
    tensors: dict[str, bytes]
    originals: dict[str, bytes]

    @property
    def data(self) -> Path:
        """The packed data file."""
        return self.folder / _DATA

    def at(self, location: str) -> dict[str, bytes]:
        """Returns the packed TensorProtos of `originals`, for a packed data file that has another name."""
        return {key: moved(self.tensors[key], {_DATA: location}) for key in self.originals}

    def splice(self, graph: bytes, name: str, own: Mapping[str, bytes]) -> bytes:
        """Returns a graph of the artifact whose external initializers refer to the packed data file.

        Args:
            graph: a serialized ONNX model.
            name: name of the graph in error messages.
            own: TensorProtos of weights that the verify graph does not have.

        Raises:
            ArtifactError: if the graph is not an ONNX model, or one of its weights does not have the same
                name, shape and place in the weights file as a weight of the verify graph.
        """
        try:
            weights = external_initializers(graph)
        except ValueError as err:
            raise ArtifactError(f"{name} is not an ONNX graph: {err}", "export the model again") from err
        for key, tensor in weights.items():
            if key not in own and self.originals.get(key) != tensor:
                raise ArtifactError(f"{name}: weight {key!r} does not match a weight of the verify graph", "export the model again")
        return replace_initializers(graph, {**self.tensors, **own})


def open_packed(
    artifact: Artifact, *, verify: bool, options: Callable[[], ort.SessionOptions], draft: DraftEntry | None = None
) -> tuple[PackedWeights | None, str]:
    """Returns the artifact's entry, which is made first if it is missing or damaged.

    Args:
        artifact: the artifact whose weights are packed.
        draft: the draft whose own weights are packed; None for the shared weights.
        verify: whether to hash an existing packed file, instead of trusting its size and modification time.
        options: returns new session options, the same as for the engines' sessions.

    Returns:
        The entry and `shared`; or, if there can be none, None and `private (why)`.
    """
    try:
        root = cache_folder()
        _prepare_root(root)
        source = _source(artifact, draft)
        folder = root / _key(source)
        entry = _read(folder, source, verify=verify)
        if entry is None:
            _build(root, folder, source, verify=verify, options=options)
            entry = _read(folder, source, verify=False)
            _keep_within_limit(root, keep=folder)
            if entry is None:
                raise _PackingError("the new cache entry cannot be read")
    except (OSError, _PackingError) as err:
        why = _reason(err)
        hint = "set SSTOOL_CACHE_DIR to a folder of your own on a disk with enough free space"
        logger.warning("the weights cannot be shared between processes and are packed privately: %s; %s", why, hint)
        return None, f"private ({why})"
    return entry, "shared"


def packing_state(artifact: Artifact) -> str:
    """Returns `shared`, `shared (packed by the first load)` or `private (why)`, without packing anything."""
    try:
        root = cache_folder()
        _prepare_root(root)
        source = _source(artifact)
        if _read(root / _key(source), source, verify=False) is not None:
            return "shared"
        _require_room(root, source)
    except (OSError, _PackingError) as err:
        return f"private ({_reason(err)})"
    return "shared (packed by the first load)"


def damaged_entry(artifact: Artifact) -> Path | None:
    """Returns the folder of an entry of the artifact whose content is not what was packed; else None."""
    try:
        root = cache_folder()
    except OSError:
        return None
    for source in _sources(artifact):
        folder = root / _key(source)
        # Where there is none, or one that the next load replaces, nothing is damaged.
        if _read(folder, source, verify=False) is not None and _read(folder, source, verify=True) is None:
            return folder
    return None


def discard(artifact: Artifact) -> None:
    """Removes the artifact's entries, if there are any."""
    for source in _sources(artifact):
        with contextlib.suppress(OSError):
            _evict(cache_folder() / _key(source))


class _PackingError(Exception):
    """The artifact cannot have an entry in the cache."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What an entry is made from.

    Attributes:
        artifact: the artifact.
        graph: name of the graph.
        own: names of the weights files that only this graph has.
    """

    artifact: Artifact
    graph: str
    own: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the graph and of the weights files that it reads."""
        return (self.graph, *self.artifact.manifest.weights, *self.own)

    def originals(self) -> dict[str, bytes]:
        """Returns the TensorProtos that the entry is for (see `PackedWeights`)."""
        found = external_initializers(self.artifact.path(self.graph).read_bytes())
        return {key: tensor for key, tensor in found.items() if not self.own or external_data(tensor).get("location") in self.own}


def _source(artifact: Artifact, draft: DraftEntry | None = None) -> _Source:
    return (
        _Source(artifact=artifact, graph=VERIFY_GRAPH)
        if draft is None
        else _Source(artifact=artifact, graph=draft.graph, own=draft.weights)
    )


def _sources(artifact: Artifact) -> list[_Source]:
    return [_source(artifact), *(_source(artifact, draft) for draft in artifact.manifest.drafts if draft.weights)]


def _key(source: _Source) -> str:
    manifest = source.artifact.manifest
    parts = {
        "format": _FORMAT,
        "graph": manifest.files[source.graph].sha256,
        "weights": [manifest.weights_digest, *(manifest.files[name].sha256 for name in source.own)],
        "onnxruntime": ort.__version__,
        "cpu": cpu_features(),
        "level": str(OPTIMIZATION_LEVEL),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def _prepare_root(root: Path) -> None:
    try:
        str(root).encode()
    except UnicodeEncodeError as err:
        raise _PackingError("the cache's folder has a name that is not UTF-8, which ONNX Runtime cannot open") from err
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = root.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise _PackingError(f"{root} belongs to or can be written by other users")


def _read(folder: Path, source: _Source, *, verify: bool) -> PackedWeights | None:
    """Returns the entry, or None if it is missing or damaged in any way; the caller then makes it again."""
    try:
        entry = parse_json((folder / _ENTRY).read_bytes())
        graph = (folder / _GRAPH).read_bytes()
        data = (folder / _DATA).stat()
        whole = (
            hashlib.sha256(graph).hexdigest() == entry["graph_sha256"]
            and data.st_size == entry["data_size"]
            and is_time_of(data.st_mtime_ns, entry["data_mtime_ns"])
            and (not verify or file_digest(folder / _DATA) == entry["data_sha256"])
        )
        if not whole:
            return None
        tensors, digest = external_initializers(graph), str(entry["data_sha256"])
        originals = source.originals()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not tensors.keys() >= originals.keys():
        return None
    try:
        os.utime(folder / _ENTRY)  # the modification time is the time of last use, for eviction
    except OSError:
        logger.debug("cannot mark %s as used", folder)
    return PackedWeights(folder=folder, digest=digest, tensors=tensors, originals=originals)


def _build(root: Path, folder: Path, source: _Source, *, verify: bool, options: Callable[[], ort.SessionOptions]) -> None:
    # What is packed once is used by every later load, so a damaged file must not get into the cache.
    artifact = source.artifact
    check_digests(artifact, names=source.files)
    _require_room(root, source)
    with scratch_folder(root, _SCRATCH) as scratch:
        _pack(source, scratch, options())
        data = scratch / _DATA
        entry = {
            "model": artifact.manifest.model.source,
            "graph_sha256": file_digest(scratch / _GRAPH),
            "data_sha256": file_digest(data),
            "data_size": data.stat().st_size,
            "data_mtime_ns": data.stat().st_mtime_ns,
        }
        (scratch / _ENTRY).write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
        sync_tree(scratch)
        # Without the lock, this process could evict an entry that another process has just published in place
        # of the damaged one.
        with locked(root):
            if _read(folder, source, verify=verify) is None:  # otherwise another process was first
                _evict(folder)
                scratch.rename(folder)


def _require_room(root: Path, source: _Source) -> None:
    files = source.artifact.manifest.files
    needed = int(2.1 * sum(files[name].size for name in source.files)) + 2**20
    if shutil.disk_usage(root).free < needed:
        raise _PackingError(f"less than {needed / 2**20:.0f} MiB free at {root}")


def _pack(source: _Source, scratch: Path, options: ort.SessionOptions) -> None:
    graph, folder = with_real_weights(source.artifact, source.artifact.path(source.graph).read_bytes())
    try:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        options.optimized_model_filepath = str(scratch / _GRAPH)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _DATA)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", str(EXTERNAL_FROM_BYTES))
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=False)
        tensors = external_initializers((scratch / _GRAPH).read_bytes())
        expected = max((_end(external_data(t)) for t in tensors.values()), default=0)
        size = (scratch / _DATA).stat().st_size
    except Exception as err:  # ONNX Runtime's exceptions share no closer base class
        raise _PackingError(f"ONNX Runtime could not write the packed weights: {err}") from err
    if size < expected:
        raise _PackingError(f"ONNX Runtime wrote {size} of {expected} bytes of packed weights")


def _end(record: dict[str, str]) -> int:
    """Returns the end, as a byte offset, of the data that an external data record refers to.

    A value of `prepacked_0`, `prepacked_1`, ... has the form `kernel|offset;length;checksum...`.
    """
    end = int(record.get("offset", 0)) + int(record.get("length", 0))
    for key, value in record.items():
        if key.startswith("prepacked"):
            for blob in value.split("|")[1:]:
                offset, length = blob.split(";")[:2]
                end = max(end, int(offset) + int(length))
    return end


def _keep_within_limit(root: Path, keep: Path) -> None:
    """Evicts the least recently used entries until the cache fits `SSTOOL_CACHE_MAX_GB`; `keep` stays."""
    entries = []
    for marker in root.glob(f"[!.]*/{_ENTRY}"):  # scratch folders start with a dot
        try:
            size = sum(p.stat().st_size for p in marker.parent.iterdir())
            entries.append((marker.stat().st_mtime, size, marker.parent))
        except OSError:
            continue
    total, limit = sum(size for _, size, _ in entries), _max_bytes()
    for _, size, folder in sorted(entries):
        if total <= limit:
            return
        if folder != keep:
            _evict(folder)
            total -= size


def _max_bytes() -> float:
    named = os.environ.get("SSTOOL_CACHE_MAX_GB", "")
    try:
        limit = float(named) if named else DEFAULT_MAX_GB
    except ValueError:
        limit = math.nan
    if not limit >= 0:
        logger.warning("SSTOOL_CACHE_MAX_GB must be a number of 0 or more, found %r; using %g", named, DEFAULT_MAX_GB)
        limit = DEFAULT_MAX_GB
    return limit * 1e9


def _evict(folder: Path) -> None:
    retire(folder, _SCRATCH)


def _reason(err: Exception) -> str:
    text = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
    return " ".join(text.split())[:200]
