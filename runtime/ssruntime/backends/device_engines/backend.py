"""Engines over one copy of the weights in a device's memory, and a pool of KV caches there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.artifact import VERIFY_GRAPH, Artifact
from ssruntime.backends.base import BackendOptions, Capabilities, DraftEngine, OpenGraph, Pass, Slot, StepOutput
from ssruntime.backends.device import Device
from ssruntime.backends.device_engines.engine import Engine, EngineOpener, profiles_for
from ssruntime.backends.device_engines.port import cache_names
from ssruntime.backends.device_engines.slot import DeviceSlot, SharedEngines
from ssruntime.backends.device_engines.weights import DeviceWeights, as_inputs
from ssruntime.backends.pool import Pool
from ssruntime.backends.rope import rope_tables
from ssruntime.errors import ArtifactError, BackendUnavailableError


class DeviceBackend:
    """The open engines of one artifact on one device. Safe to use from several threads.

    Passes of different sequences take turns, because they share the memory for intermediate values.
    """

    packing = "shared (by all engines of this process)"

    def __init__(self, artifact: Artifact, options: BackendOptions, device: Device, opener: EngineOpener, *, threads: int) -> None:
        """Uploads the weights and opens the engines.

        Args:
            artifact: the artifact.
            options: how to open it.
            device: device to run on.
            opener: opens engines on that device.
            threads: number of threads of each engine; 1 on a GPU.

        Raises:
            ArtifactError: if a graph is not one that the engines can run.
            BackendUnavailableError: if the device cannot run it, or lacks memory.
        """
        manifest, draft = artifact.manifest, options.draft
        self.max_context = options.max_context
        self.vocab_size = manifest.model.vocab_size
        self.threads = threads
        if options.bake_weights:
            self.packing = "private (each engine holds weights of its own)"
        self.device = opener.title
        self.has_draft = draft is not None
        self._device, self._opener, self._artifact = device, opener, artifact
        self._is_baked = options.bake_weights
        self._capacity = manifest.max_context  # the graphs fix it, whatever context is loaded
        graphs = {name: artifact.path(name).read_bytes() for name in (VERIFY_GRAPH, *([draft.graph] if draft else []))}
        engines = {name: self._open(graph, name) for name, graph in graphs.items()}
        verify = engines[VERIFY_GRAPH]
        takes_trees = graph_io.TREE_MASK in verify.inputs
        self.capabilities = Capabilities(max_rows=1, token_trees=takes_trees, logits_on_device=True, bit_exact=False)
        window = manifest.model.window if takes_trees else 0
        self.alternatives_end = self.max_context if window is None else min(self.max_context, window)
        tables = rope_tables(manifest.rope, self._capacity)
        encoded = {name: verify.inputs[name].encode(table) for name, table in tables.items() if name in verify.inputs}
        entries = [verify.inputs[name] for name in cache_names(verify)]
        self.kv_entry_bytes = sum(info.shape[1] * info.shape[3] * info.dtype.itemsize for info in entries)
        workspace = max(engine.workspace for engine in engines.values())
        _require_memory(artifact, device, workspace)
        self._weights = DeviceWeights(artifact, () if self._is_baked else graphs.values(), encoded, device)
        self._engines: SharedEngines | None = SharedEngines(
            verify=verify,
            draft=engines[draft.graph] if draft else None,
            weights=self._weights,
            device=device,
            workspace=device.reserve(workspace, "intermediate values"),
            lock=threading.Lock(),
            max_context=self.max_context,
            alternatives_end=self.alternatives_end,
            capacity=self._capacity,
            vocab_size=self.vocab_size,
            kv_entry_bytes=self.kv_entry_bytes,
        )
        shared = self._engines
        self._pool: Pool[DeviceSlot] = Pool(lambda: DeviceSlot(shared, shared.draft, shared.max_context), options.max_sequences)

    def acquire(self, timeout: float | None, cancel: threading.Event | None = None) -> DeviceSlot:
        """Returns a slot from the pool; see `backends.base.Backend`."""
        slot = self._pool.acquire(timeout, cancel)
        slot.engine_seconds = 0.0
        return slot

    def release(self, slot: Slot) -> None:
        """Gives a slot back."""
        assert isinstance(slot, DeviceSlot)
        self._pool.release(slot)

    def run(self, passes: Sequence[tuple[Slot, Pass]]) -> list[StepOutput]:
        """Returns the outputs of passes of different sequences, one after another."""
        if len({id(slot) for slot, _ in passes}) < len(passes):
            raise ValueError("each slot can run one pass at a time")
        outputs = []
        for slot, wanted in passes:
            output = slot.run(wanted)
            outputs.append(output if len(passes) == 1 else _kept(output))
        return outputs

    def move(self, slot: Slot, length: int, use: Callable[[Slot], None]) -> bool:
        """Moves nothing: sequences share no passes here."""
        return False

    def open_draft(self, graph: bytes, name: str, own: Mapping[str, NDArray[Any]] | None = None) -> Engine:
        """Returns another draft over the same weights; see `backends.base.Backend`."""
        if own:
            raise BackendUnavailableError(f"{name}: drafts have no weights of their own on this target", "use target ort-cpu")
        if self._is_baked:
            raise BackendUnavailableError(f"{name}: an engine that holds its weights needs a file of its own", "load without bake_weights")
        return self._open(graph, name)

    def open_graph(self, graph: bytes, name: str) -> OpenGraph:
        """Refuses: only whole engines run on this backend.

        Raises:
            BackendUnavailableError: always.
        """
        raise BackendUnavailableError(f"{name} cannot be run alone on this target", "run the search on an artifact of target ort-cpu")

    def new_slot(self, max_context: int, draft: DraftEngine | None = None) -> DeviceSlot:
        """Returns a new slot that does not belong to the pool; see `backends.base.Backend`."""
        if self._engines is None:
            raise _closed()
        return DeviceSlot(self._engines, cast("Engine | None", draft), max_context)

    def close(self) -> None:
        """Drops the engines and the slots; those in use stay valid until they are released."""
        self._engines = None
        self._pool.close(_closed())

    def _open(self, graph: bytes, name: str) -> Engine:
        given = graph if self._is_baked else as_inputs(graph, name)
        file = self._artifact.path(name) if self._is_baked else None
        engine = self._opener.open(given, name, profiles=profiles_for(self._capacity), file=file)
        needed = {graph_io.INPUT_IDS, graph_io.POSITION_IDS, graph_io.LOGITS_INDEX} - engine.inputs.keys()
        needed |= {graph_io.TOKEN, graph_io.CONFIDENCE, graph_io.TOP_TOKENS, graph_io.TOP_LOGITS, graph_io.LOGITS} - engine.outputs.keys()
        if needed:
            raise ArtifactError(f"{name} lacks the inputs or outputs {', '.join(sorted(needed))}", "export the model again")
        for key, info in engine.inputs.items():
            if key.startswith(graph_io.PAST_PREFIX) and info.shape[2] != self._capacity:
                raise ArtifactError(
                    f"{name} has a KV cache of {info.shape[2]} tokens, the manifest says {self._capacity}", "export the model again"
                )
        return engine


def _require_memory(artifact: Artifact, device: Device, workspace: int) -> None:
    """Checks that weights, intermediate values and one KV cache fit, before anything is uploaded.

    Raises:
        BackendUnavailableError: saying what takes how much, and which context would fit.
    """
    free = device.free_bytes()
    if free is None:
        return
    manifest = artifact.manifest
    per_token = manifest.kv.bytes_per_token()
    weights, cache = manifest.weights_size, per_token * manifest.max_context
    if weights + workspace + cache <= free:
        return
    fits = (free - weights - workspace) // per_token if per_token else 0
    hint = "free memory on the GPU, or use a smaller model or a larger GPU"
    if fits > 1:
        hint = f"export the model with --max-context {fits} or less"
    raise BackendUnavailableError(
        f"{artifact.folder.name} does not fit into the GPU's memory: weights {weights / 1e9:.2f} GB, intermediate values"
        f" {workspace / 1e9:.2f} GB, KV cache of a sequence of {manifest.max_context} tokens {cache / 1e9:.2f} GB; free are"
        f" {free / 1e9:.2f} GB",
        hint,
    )


def _kept(output: StepOutput) -> StepOutput:
    """Returns a copy of an output, which the engine's next pass would overwrite."""
    return StepOutput(
        output.tokens.copy(), output.confidence.copy(), output.top_tokens.copy(), output.top_logits.copy(), np.array(output.logits)
    )


def _closed() -> BackendUnavailableError:
    return BackendUnavailableError("this engine is closed", "load the artifact again")
