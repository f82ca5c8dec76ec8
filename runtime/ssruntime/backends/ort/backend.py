"""The CPU backend of one artifact: a pool of slots, and sessions that share one copy of the weights."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.artifact import STEP_GRAPH, VERIFY_GRAPH, Artifact, DraftEntry, Rope
from ssruntime.backends.base import Slot
from ssruntime.backends.ort.engine_port import EnginePort
from ssruntime.backends.ort.packing import open_packed, with_real_weights
from ssruntime.backends.ort.process_ends import watch
from ssruntime.backends.ort.rope import rope_tables
from ssruntime.backends.ort.slot import OrtSlot, TargetSessions
from ssruntime.backends.ort.thread_pool import PROVIDERS, choose_threads
from ssruntime.backends.pool import Pool
from ssruntime.errors import ArtifactError, BackendUnavailableError
from ssruntime.machine import l2_cache_size, return_freed_memory

logger = logging.getLogger(__name__)

_USUAL_L2: Final = 2**20
_BYTES_PER_KEY: Final = 32
"""Bytes of the L2 cache that the kernel counts for each number of a key."""


class OrtBackend:
    """The open sessions of one artifact and a pool of slots. Safe to use from several threads.

    Attributes:
        rope: RoPE tables by the names of the graphs' inputs, for every position of the context.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int,
        max_context: int,
        max_sequences: int,
        draft: DraftEntry | None,
        bit_exact: bool,
        verify_digests: bool,
        global_threads: bool,
    ) -> None:
        self._options = choose_threads(threads, global_threads)
        self.max_context = max_context
        self.vocab_size = artifact.manifest.model.vocab_size
        self.threads = self._options.threads
        self.bit_exact = bit_exact
        window = artifact.manifest.model.window
        self.alternatives_end = max_context if window is None else min(max_context, window)
        packed, self.packing = open_packed(artifact, verify=verify_digests, options=self._options.make)
        names = (VERIFY_GRAPH, *([STEP_GRAPH] if bit_exact else []), *([draft.graph] if draft else []))
        graphs = {g: artifact.path(g).read_bytes() for g in names}
        sessions = None
        if packed is not None:
            spliced = {name: packed.splice(graph, name) for name, graph in graphs.items()}
            try:
                sessions = self._open_all(spliced, packed.folder)
            except ArtifactError as err:  # another process may have evicted the entry since it was read
                logger.warning("the packed weights cannot be opened; packing privately: %s", err)
                self.packing = "private (the packed weights could not be opened)"
        if sessions is None:
            real = {name: with_real_weights(artifact, graph) for name, graph in graphs.items()}
            sessions = self._open_all({name: graph for name, (graph, _) in real.items()}, real[VERIFY_GRAPH][1])
            packed = None
        _check_rope(sessions[VERIFY_GRAPH], artifact.manifest.rope)
        self._packed, self._artifact = packed, artifact
        self.rope = rope_tables(artifact.manifest.rope, max_context + graph_io.STEP_PADDING)
        self.has_draft = draft is not None
        self._slots: SlotMaker | None = SlotMaker(
            target=TargetSessions(sessions[VERIFY_GRAPH], sessions.get(STEP_GRAPH)),
            draft=sessions[draft.graph] if draft else None,
            rope=self.rope,
            max_context=max_context,
            alternatives_end=self.alternatives_end,
            attention_block=attention_block(artifact.manifest.kv.head_dim),
            vocab_size=self.vocab_size,
        )
        self._made = self._slots.made
        # A maker that does not refer to this backend: a reference cycle would keep the sessions alive.
        self._pool: Pool[OrtSlot] = Pool(self._slots.make_pooled, max_sequences)
        return_freed_memory()
        watch(self)

    def acquire(self, timeout: float | None) -> OrtSlot:
        """Returns a slot from the pool; see `backends.base.Backend`."""
        slot = self._pool.acquire(timeout)
        slot.engine_seconds = 0.0
        return slot

    def release(self, slot: Slot) -> None:
        """Gives a slot back."""
        assert isinstance(slot, OrtSlot)
        slot.trim()
        self._pool.release(slot)

    def close(self) -> None:
        """Drops the sessions and the slots; those in use stay valid until they are released."""
        self._slots = None
        self._pool.close(_closed())

    def abandon(self, refusal: BackendUnavailableError) -> list[ort.InferenceSession]:
        """Refuses every later use with this error; returns the sessions (see `process_ends.py`)."""
        self._pool.abandon(refusal)
        if self._slots is None:
            return []
        slots, self._slots = self._slots, None
        return slots.abandon(refusal)

    def open_ports(self) -> list[EnginePort]:
        """Returns the ports of all slots."""
        return [port for slot in list(self._made) for port in slot.ports()]

    def open_draft(self, graph: bytes, name: str) -> ort.InferenceSession:
        """Returns a session of another draft over the same weights, for slots made by `new_slot`.

        Args:
            graph: a serialized ONNX model; each of its weights must be a weight of the verify graph.
            name: name of the draft in error messages.

        Raises:
            ArtifactError: if the graph cannot be opened or is not a draft of this artifact.
        """
        session = self.open_graph(graph, name)
        _check_contract(session, name, takes_trees=False)
        return session

    def open_graph(self, graph: bytes, name: str) -> ort.InferenceSession:
        """Returns a session of any graph over the same weights, such as a part of the model.

        Args:
            graph: a serialized ONNX model; each of its weights must be a weight of the verify graph.
            name: name of the graph in error messages.

        Raises:
            ArtifactError: if the graph cannot be opened.
        """
        if self._packed is None:
            graph, folder = with_real_weights(self._artifact, graph)
            return self._open(graph, name, str(folder))
        return self._open(self._packed.splice(graph, name), name, str(self._packed.folder))

    def new_slot(self, max_context: int, draft: ort.InferenceSession | None = None) -> OrtSlot:
        """Returns a new slot that does not belong to the pool.

        Args:
            max_context: positions of its KV cache; at most the backend's own `max_context` is used.
            draft: its draft session, from `open_draft`; None for a slot that cannot draft.

        Raises:
            BackendUnavailableError: if the backend is closed.
        """
        if self._slots is None:
            raise _closed()
        return self._slots.make(min(max_context, self.max_context), draft)

    def _open_all(self, graphs: dict[str, bytes], folder: Path) -> dict[str, ort.InferenceSession]:
        sessions = {name: self._open(graph, name, str(folder)) for name, graph in graphs.items()}
        for name, session in sessions.items():
            _check_contract(session, name, takes_trees=name == VERIFY_GRAPH)
        return sessions

    def _open(self, graph: bytes, name: str, folder: str) -> ort.InferenceSession:
        options = self._options.make()
        try:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
            # No fallback: there is no other provider, and a second attempt would print to stdout.
            session = ort.InferenceSession(graph, options, providers=PROVIDERS, enable_fallback=False)
        except Exception as err:  # ONNX Runtime's exceptions share no closer base class
            raise ArtifactError(f"ONNX Runtime cannot open {name}: {err}", "export the model again") from err
        return session


@dataclass(frozen=True, kw_only=True)
class SlotMaker:
    """Makes slots of one backend's sessions. Its fields are those of `OrtSlot`."""

    target: TargetSessions
    draft: ort.InferenceSession | None
    rope: Mapping[str, NDArray[np.float32]]
    max_context: int
    alternatives_end: int
    attention_block: int
    vocab_size: int
    made: weakref.WeakSet[OrtSlot] = field(default_factory=weakref.WeakSet)

    def make_pooled(self) -> OrtSlot:
        """Returns a new slot of the whole context, with the backend's own draft."""
        return self.make(self.max_context, self.draft)

    def make(self, max_context: int, draft: ort.InferenceSession | None) -> OrtSlot:
        """Returns a new slot."""
        slot = OrtSlot(
            self.target,
            draft,
            self.rope,
            max_context=max_context,
            alternatives_end=min(max_context, self.alternatives_end),
            attention_block=self.attention_block,
            vocab_size=self.vocab_size,
        )
        self.made.add(slot)
        return slot

    def abandon(self, refusal: BackendUnavailableError) -> list[ort.InferenceSession]:
        """Makes every slot refuse to run; returns the sessions."""
        sessions = [session for session in (*self.target, self.draft) if session is not None]
        for slot in self.made:
            sessions += slot.abandon(refusal)
        return sessions


def _closed() -> BackendUnavailableError:
    return BackendUnavailableError("this engine is closed", "load the artifact again")


def attention_block(head_dim: int) -> int:
    """Returns the number of query rows that ONNX Runtime's flash attention computes together.

    ONNX Runtime chooses it from the size of the processor's L2 cache, in GroupQueryAttention for the CPU.
    Where the size is not known, it is that of a cache of 1 MiB. The bit test tells whether it is right.

    Args:
        head_dim: length of a head's vectors.
    """
    keys = (l2_cache_size() or _USUAL_L2) // (_BYTES_PER_KEY * head_dim)
    return max(1, min(keys, 2 * head_dim))


def _check_rope(verify: ort.InferenceSession, ropes: Mapping[str, Rope]) -> None:
    if not all(math.isfinite(number) for rope in ropes.values() for number in (*rope.frequencies, rope.scale)):
        raise ArtifactError("manifest.json: rope: a number is not finite", "export the model again")
    known = {name: len(rope.frequencies) for key, rope in ropes.items() for name in graph_io.rope_names(key)}
    for value in verify.get_inputs():
        if value.name.startswith(graph_io.ROPE_PREFIX) and known.get(value.name) != value.shape[1]:
            raise ArtifactError(
                f"manifest.json: rope: expected {value.shape[1]} frequencies for {value.name}, found {known.get(value.name, 'none')}",
                "export the model again",
            )


def _check_contract(session: ort.InferenceSession, name: str, *, takes_trees: bool) -> None:
    inputs = {v.name for v in session.get_inputs()}
    outputs = {v.name for v in session.get_outputs()}
    needed = {graph_io.INPUT_IDS, graph_io.SEQLENS_K, graph_io.TOTAL_SEQUENCE_LENGTH, graph_io.POSITION_IDS, graph_io.LOGITS_INDEX}
    missing = (needed | {graph_io.PAST_LENGTH, graph_io.TREE_MASK} if takes_trees else needed) - inputs
    missing |= {graph_io.TOKEN, graph_io.CONFIDENCE, graph_io.TOP_TOKENS, graph_io.TOP_LOGITS, graph_io.LOGITS} - outputs
    if missing:
        raise ArtifactError(f"{name} lacks the inputs or outputs {', '.join(sorted(missing))}", "export the model again")
