"""The CPU backend of one artifact: a pool of slots, and sessions that share one copy of the weights."""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.artifact import STEP_GRAPH, VERIFY_GRAPH, Artifact, Rope
from ssruntime.backends.base import PREFILL_CHUNK, BackendOptions, Capabilities, DraftEngine, Pass, Slot, StepOutput
from ssruntime.backends.device import HostDevice
from ssruntime.backends.ort.integer_kernels import require_instructions
from ssruntime.backends.ort.kv_arena import KvArena
from ssruntime.backends.ort.open_graph import OrtGraph
from ssruntime.backends.ort.port import Port
from ssruntime.backends.ort.process_ends import watch
from ssruntime.backends.ort.ragged_passes import RaggedPasses
from ssruntime.backends.ort.ragged_port import RaggedPort
from ssruntime.backends.ort.sessions import Sessions, TargetSessions, check_contract
from ssruntime.backends.ort.slot import OrtSlot, SlotLimits
from ssruntime.backends.ort.thread_pool import choose_threads
from ssruntime.backends.pool import Pool
from ssruntime.backends.rope import rope_tables
from ssruntime.errors import ArtifactError, BackendUnavailableError
from ssruntime.machine import l2_cache_size, return_freed_memory

_HOST: Final = HostDevice()
_KV_DTYPE: Final = np.dtype(np.float32)
_USUAL_L2: Final = 2**20
_BYTES_PER_KEY: Final = 32
"""Bytes of the L2 cache that the kernel counts for each number of a key."""


class OrtBackend:
    """The open sessions of one artifact and a pool of slots. Safe to use from several threads.

    Attributes:
        rope: RoPE tables by the names of the graphs' inputs, for every position of the context.
    """

    def __init__(self, artifact: Artifact, options: BackendOptions) -> None:
        require_instructions(artifact)
        max_context, draft = options.max_context, options.draft
        settings = choose_threads(options.threads, options.global_threads)
        self.max_context = max_context
        self.vocab_size = artifact.manifest.model.vocab_size
        self.threads = settings.threads
        self.device = "cpu"
        window = artifact.manifest.model.window
        self.alternatives_end = max_context if window is None else min(max_context, window)
        opened = Sessions(artifact, options, settings)
        self.packing = opened.packing
        sessions = opened.by_graph
        self._sessions: Sessions | None = opened
        _check_rope(sessions[VERIFY_GRAPH], artifact.manifest.rope)
        capacity = max_context + PREFILL_CHUNK  # room for the padding of a row beside the widest pass
        self.rope = rope_tables(artifact.manifest.rope, capacity)
        self.has_draft = draft is not None
        self.capabilities = Capabilities(
            max_rows=options.max_sequences, token_trees=True, logits_on_device=False, bit_exact=options.bit_exact
        )
        target = TargetSessions(sessions[VERIFY_GRAPH], sessions.get(STEP_GRAPH))
        own_draft = sessions[draft.graph] if draft else None
        arena = KvArena(target.verify, _HOST, _KV_DTYPE, rows=options.max_sequences, capacity=capacity)
        self.kv_entry_bytes = arena.entry_bytes
        shared = RaggedPasses(target, own_draft, self.rope, arena, vocab_size=self.vocab_size)
        # Not the object itself: a closed backend must not keep the sessions alive.
        self._shared = weakref.ref(shared)
        self._slots: SlotMaker | None = SlotMaker(
            target=target,
            draft=own_draft,
            rope=self.rope,
            arena=arena,
            shared=shared,
            limits=SlotLimits(max_context, self.alternatives_end, attention_block(artifact.manifest.kv.head_dim), self.vocab_size),
        )
        self._made = self._slots.made
        # A maker that does not refer to this backend: a reference cycle would keep the sessions alive.
        # A pass that sequences share covers the rows between them too, so low rows go first.
        self._pool: Pool[OrtSlot] = Pool(self._slots.make_pooled, options.max_sequences, rank=lambda slot: slot.place)
        return_freed_memory()
        watch(self)

    def acquire(self, timeout: float | None, cancel: threading.Event | None = None) -> OrtSlot:
        """Returns a slot from the pool; see `backends.base.Backend`."""
        slot = self._pool.acquire(timeout, cancel)
        slot.engine_seconds = 0.0
        return slot

    def release(self, slot: Slot) -> None:
        """Gives a slot back."""
        assert isinstance(slot, OrtSlot)
        slot.trim(everything=self._slots is None)
        self._pool.release(slot)

    def move(self, slot: Slot, length: int, use: Callable[[Slot], None]) -> bool:
        """Moves a sequence to a free slot of lower `place`; see `backends.base.Backend`."""
        assert isinstance(slot, OrtSlot)

        def take_over(new: OrtSlot) -> None:
            new.take_over(slot, length)
            slot.trim(everything=self._slots is None)
            use(new)

        return self._pool.exchange(slot, take_over)

    def run(self, passes: Sequence[tuple[Slot, Pass]]) -> list[StepOutput]:
        """Returns the outputs of passes of different sequences; see `backends.base.Backend`.

        Raises:
            ValueError: if a pass does not fit, as for `Slot.run`, or two passes are for the same slot.
        """
        if len(passes) == 1 and passes[0][0] in self._made:  # the usual case, kept short: it runs before every pass of a request alone
            slot, wanted = passes[0]
            return [slot.run(wanted)]
        own = [(slot, wanted) for slot, wanted in passes if isinstance(slot, OrtSlot) and slot in self._made]
        if len(own) < len(passes) or len({id(slot) for slot, _ in own}) < len(own):
            raise ValueError("a pass needs a slot of this backend, and each slot can run one pass at a time")
        shared = own[0][0].shared if own else None
        if len(own) > 1 and shared is not None and all(slot.shared is shared for slot, _ in own):
            return shared.run(own)
        return [slot.run(wanted) for slot, wanted in own]

    def close(self) -> None:
        """Drops the sessions and the slots; those in use stay valid until they are released."""
        self._slots = self._sessions = None
        for slot in self._pool.close(_closed()):
            slot.trim(everything=True)

    def abandon(self, refusal: BackendUnavailableError) -> list[ort.InferenceSession]:
        """Refuses every later use with this error; returns the sessions (see `process_ends.py`)."""
        self._pool.abandon(refusal)
        if self._slots is None:
            return []
        slots, self._slots = self._slots, None
        return slots.abandon(refusal)

    def open_ports(self) -> list[Port]:
        """Returns the ports of all slots."""
        return [*self._shared_ports(), *(port for slot in list(self._made) for port in slot.ports())]

    def _shared_ports(self) -> Iterable[RaggedPort]:
        shared = self._shared()
        return () if shared is None else shared.ports()

    def open_draft(self, graph: bytes, name: str, own: Mapping[str, NDArray[Any]] | None = None) -> ort.InferenceSession:
        """Returns a session of another draft; see `backends.base.Backend`."""
        session = self._open(graph, name, own or {})
        check_contract(session, name, takes_trees=False)
        return session

    def open_graph(self, graph: bytes, name: str) -> OrtGraph:
        """Returns any graph over the same weights; see `backends.base.Backend`."""
        return OrtGraph(self._open(graph, name, {}), self.rope)

    def _open(self, graph: bytes, name: str, own: Mapping[str, NDArray[Any]]) -> ort.InferenceSession:
        if self._sessions is None:
            raise _closed()
        return self._sessions.open(graph, name, own)

    def new_slot(self, max_context: int, draft: DraftEngine | None = None) -> OrtSlot:
        """Returns a new slot that does not belong to the pool; see `backends.base.Backend`."""
        if self._slots is None:
            raise _closed()
        assert draft is None or isinstance(draft, ort.InferenceSession)
        return self._slots.make_alone(min(max_context, self.max_context), draft)


@dataclass(frozen=True, kw_only=True)
class SlotMaker:
    """Makes slots of one backend's sessions.

    Attributes:
        target: sessions of the whole model.
        draft: session of the backend's own draft.
        rope: RoPE tables by input name.
        arena: KV caches of the pool's slots.
        shared: engine passes that these slots can share.
        limits: limits of the pool's slots.
        made: the slots that exist.
    """

    target: TargetSessions
    draft: ort.InferenceSession | None
    rope: Mapping[str, NDArray[np.float32]]
    arena: KvArena
    shared: RaggedPasses
    limits: SlotLimits
    made: weakref.WeakSet[OrtSlot] = field(default_factory=weakref.WeakSet)
    _rows: Iterator[int] = field(default_factory=itertools.count)

    def make_pooled(self) -> OrtSlot:
        """Returns a slot for the next row of the backend's arena, with the backend's own draft."""
        return self._make(self.arena, next(self._rows), self.limits, self.draft, self.shared)

    def make_alone(self, max_context: int, draft: ort.InferenceSession | None) -> OrtSlot:
        """Returns a slot with an arena of its own."""
        arena = KvArena(self.target.verify, _HOST, _KV_DTYPE, rows=1, capacity=max_context + graph_io.STEP_PADDING)
        end = min(max_context, self.limits.alternatives_end)
        return self._make(arena, 0, self.limits._replace(max_context=max_context, alternatives_end=end), draft, None)

    def abandon(self, refusal: BackendUnavailableError) -> list[ort.InferenceSession]:
        """Makes every slot refuse to run; returns the sessions."""
        sessions = [session for session in (*self.target, self.draft) if session is not None]
        sessions += [port.abandon(refusal) for port in self.shared.ports()]
        for slot in self.made:
            sessions += slot.abandon(refusal)
        return sessions

    def _make(
        self, arena: KvArena, row: int, limits: SlotLimits, draft: ort.InferenceSession | None, shared: RaggedPasses | None
    ) -> OrtSlot:
        slot = OrtSlot(self.target, draft, self.rope, arena, row, limits=limits, shared=shared)
        self.made.add(slot)
        return slot


def open_backend(artifact: Artifact, options: BackendOptions) -> OrtBackend:
    """Returns the open engines of an artifact; called by `ssruntime.backends.registry`."""
    return OrtBackend(artifact, options)


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
