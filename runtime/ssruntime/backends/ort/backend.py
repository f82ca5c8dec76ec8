"""ONNX Runtime on the CPU: two sessions over one copy of the weights, and caches that are bound once and written in place.

Why the sessions are opened as they are (measured on 2 cores, see the README): each session owns a thread pool whose idle threads
spin, so two sessions that take turns would fight for the cores; `session.force_spinning_stop` ends the spinning with each run.
A process-wide pool does the same a little better, but changes every session of the host program, so it is made only if asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.artifact import VERIFY_GRAPH, Artifact, DraftEntry
from ssruntime.backends.base import Slot, StepOutput
from ssruntime.backends.ort.kv_cache import SequenceCache, bind_input, bind_output
from ssruntime.backends.ort.packing import OPTIMIZATION_LEVEL, open_packed
from ssruntime.backends.ort.tree_mask import TreeMask
from ssruntime.backends.pool import Pool
from ssruntime.errors import ArtifactError
from ssruntime.proposal import Alternative

logger = logging.getLogger(__name__)

PREFILL_CHUNK: Final = 256
"""Most prompt tokens in one pass: enough to use the cores fully, little enough to keep activations small."""

_PROVIDERS: Final = ["CPUExecutionProvider"]
_global_pool_lock = threading.Lock()
_global_pool_threads: list[int] = []
"""What this module made the process-wide pool with, if it did."""


class OrtBackend:
    """The open sessions of one artifact and a pool of slots. Safe to use from several threads."""

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int,
        max_context: int,
        max_sequences: int,
        draft: DraftEntry | None,
        verify_digests: bool,
        global_threads: bool,
    ) -> None:
        self._options = _choose_threads(threads, global_threads)
        self.max_context = max_context
        self.vocab_size = artifact.manifest.model.vocab_size
        self.threads = self._options.threads
        window = artifact.manifest.model.window
        self.alternatives_end = max_context if window is None else min(max_context, window)
        packed, self.packing = open_packed(artifact, verify=verify_digests, options=self._options.make)
        plain = {g: artifact.path(g).read_bytes() for g in (VERIFY_GRAPH, *([draft.graph] if draft else []))}
        sessions = None
        if packed is not None:
            spliced = {name: packed.splice(graph, name) for name, graph in plain.items()}
            try:
                sessions = self._open_all(spliced, packed.folder)
            except ArtifactError as err:  # another process may have evicted the entry since it was read
                logger.warning("the packed weights cannot be opened; packing privately: %s", err)
                self.packing = "private (the packed weights could not be opened)"
        if sessions is None:
            sessions = self._open_all(plain, artifact.folder)
            packed = None
        self._packed, self._folder = packed, artifact.folder
        self._verify = sessions[VERIFY_GRAPH]
        self._draft = sessions[draft.graph] if draft else None
        _return_freed_memory()
        self.has_draft = self._draft is not None
        self._pool: Pool[OrtSlot] = Pool(self._make_slot, max_sequences)

    def acquire(self, timeout: float | None) -> OrtSlot:
        """Takes a slot, waiting up to `timeout` seconds. Raises BackendUnavailableError if none came free."""
        slot = self._pool.acquire(timeout)
        slot.engine_seconds = 0.0
        return slot

    def release(self, slot: Slot) -> None:
        """Gives a slot back."""
        assert isinstance(slot, OrtSlot)
        self._pool.release(slot)

    def close(self) -> None:
        """Drops the buffers that are not in use; the sessions go with the last reference to them."""
        self._pool.clear()

    def open_draft(self, graph: bytes, name: str) -> ort.InferenceSession:
        """Opens another draft over the same weights, for slots made by `new_slot`.

        Args:
            graph: a serialized ONNX model whose weights are some of the verify graph's.
            name: what to call it in errors.

        Raises:
            ArtifactError: if it is no draft of this artifact.
        """
        session = self.open_graph(graph, name)
        _check_contract(session, name, is_draft=True)
        return session

    def open_graph(self, graph: bytes, name: str) -> ort.InferenceSession:
        """Opens any graph over the same weights, such as a part of the model. Raises ArtifactError if it cannot be opened."""
        if self._packed is None:
            return self._open(graph, name, str(self._folder))
        return self._open(self._packed.splice(graph, name), name, str(self._packed.folder))

    def new_slot(self, max_context: int, draft: ort.InferenceSession | None = None) -> OrtSlot:
        """Makes a slot outside the pool, with a cache of `max_context` positions and any draft that `open_draft` gave."""
        max_context = min(max_context, self.max_context)
        return OrtSlot(
            self._verify,
            draft,
            max_context=max_context,
            alternatives_end=min(max_context, self.alternatives_end),
            vocab_size=self.vocab_size,
        )

    def _open_all(self, graphs: dict[str, bytes], folder: Path) -> dict[str, ort.InferenceSession]:
        sessions = {name: self._open(graph, name, str(folder)) for name, graph in graphs.items()}
        for name, session in sessions.items():
            _check_contract(session, name, is_draft=name != VERIFY_GRAPH)
        return sessions

    def _open(self, graph: bytes, name: str, folder: str) -> ort.InferenceSession:
        options = self._options.make()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        try:
            # Without a fallback: there is no other provider, and trying again would print to stdout.
            session = ort.InferenceSession(graph, options, providers=_PROVIDERS, enable_fallback=False)
        except Exception as err:  # ONNX Runtime's exceptions share no nearer base class
            raise ArtifactError(f"ONNX Runtime cannot open {name}: {err}", "export the model again") from err
        return session

    def _make_slot(self) -> OrtSlot:
        return self.new_slot(self.max_context, self._draft)


class OrtSlot:
    """One sequence's cache and small buffers, bound to both sessions. Used by one thread at a time (see `backends.base.Slot`)."""

    def __init__(
        self,
        verify: ort.InferenceSession,
        draft: ort.InferenceSession | None,
        *,
        max_context: int,
        alternatives_end: int,
        vocab_size: int,
    ) -> None:
        self.max_context = max_context
        self.alternatives_end = alternatives_end
        self.engine_seconds = 0.0
        self._cache = SequenceCache(verify, max_context)
        self._verify = _EnginePort(verify, self._cache, graph_io.MAX_VERIFY_WIDTH, vocab_size)
        self._vocab_size = vocab_size
        self._draft: _EnginePort | None = None
        if draft is not None:
            self.use_draft(draft)

    def use_draft(self, draft: ort.InferenceSession) -> None:
        """Drafts with another engine from here on, over the same cache."""
        self._draft = _EnginePort(draft, self._cache, 1, self._vocab_size)

    def preserved(self, start: int, stop: int) -> contextlib.AbstractContextManager[None]:
        """Undoes what drafting writes to the cache at `[start, stop)` when the block ends."""
        assert self._draft is not None, "this slot was made without a draft"
        return self._cache.preserved(self._draft.session, start, min(stop, self.max_context))

    def prefill(self, ids: Sequence[int]) -> StepOutput:
        """Runs a prompt through the verify engine in chunks from position 0; gives the last position."""
        for start in range(0, len(ids), PREFILL_CHUNK):
            chunk = ids[start : start + PREFILL_CHUNK]
            output = self.forward(chunk, start, (len(chunk) - 1,))
        return output

    def forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """Runs `ids` in one pass of the verify engine, of any width; gives the positions named."""
        return self._timed_wide(self._verify, ids, start, positions)

    def draft_forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """As `forward`, through the draft engine."""
        assert self._draft is not None, "this slot was made without a draft"
        return self._timed_wide(self._draft, ids, start, positions)

    def verify(self, ids: Sequence[int], start: int, alternatives: Sequence[Alternative] = ()) -> StepOutput:
        """Runs up to `MAX_VERIFY_WIDTH` tokens in one pass of the verify engine; gives a row for each (see `backends.base.Slot`)."""
        self._check_room(start, len(ids) + len(alternatives))
        if alternatives and start == 0:
            # The kernels count the positions of a first pass themselves, and would turn an alternative by another place's angles.
            raise ValueError("alternatives need at least one token before the pass")
        output, seconds = self._verify.run(ids, start, alternatives)
        self.engine_seconds += seconds
        return output

    def move(self, source: int, target: int) -> None:
        """Gives position `target` of the cache the keys and values of `source`."""
        self._cache.move(source, target)

    def draft(self, token: int, position: int) -> StepOutput:
        """Runs one token through the draft engine."""
        assert self._draft is not None, "this slot was made without a draft"
        self._check_room(position, 1)
        output, seconds = self._draft.run((token,), position)
        self.engine_seconds += seconds
        return output

    def _timed_wide(self, port: _EnginePort, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        self._check_room(start, len(ids))
        output, seconds = port.run_wide(ids, start, positions)
        self.engine_seconds += seconds
        return output

    def _check_room(self, start: int, width: int) -> None:
        # The kernels do not check: past the end they would write into other memory.
        if start < 0 or width < 1 or start + width > self.max_context:
            raise ValueError(f"positions {start} to {start + width} lie outside the context of {self.max_context}")


class _EnginePort:
    """One session's small inputs and outputs for one sequence, at fixed addresses, with a binding for each width."""

    def __init__(self, session: ort.InferenceSession, cache: SequenceCache, max_width: int, vocab_size: int) -> None:
        self.session = session
        self._cache = cache
        self._vocab_size = vocab_size
        self._ids = np.zeros(max_width, dtype=np.int64)
        self._positions = np.zeros(max_width, dtype=np.int64)
        self._lengths = np.zeros(2, dtype=np.int32)
        # Written through memoryviews: see `StepOutput` for what numpy would cost here.
        self._ids_memory, self._positions_memory, self._lengths_memory = self._ids.data, self._positions.data, self._lengths.data
        self._past_length = np.zeros(1, dtype=np.int64)
        self._past_length_memory = self._past_length.data
        self._takes_mask = any(v.name == graph_io.TREE_MASK for v in session.get_inputs())
        self._index = np.arange(max_width, dtype=np.int64)
        self._num_top = min(graph_io.MAX_TOP_TOKENS, vocab_size)
        self._buffers = self._output_buffers(max_width)
        self._bound: dict[int, _Bound] = {}
        self._wide: ort.IOBinding | None = None

    def run(self, ids: Sequence[int], start: int, alternatives: Sequence[Alternative] = ()) -> tuple[StepOutput, float]:
        """Runs one pass of a bound width; gives a row for each token and the seconds inside the run call."""
        width = len(ids) + len(alternatives)
        bound = self._bound.get(width)
        if bound is None:
            bound = self._bound[width] = self._bind_width(width)
        for index, token in enumerate(ids):
            self._ids_memory[index] = token
            self._positions_memory[index] = start + index
        self._set_length(start, width)
        if not alternatives:
            return bound.output, self._timed(bound.binding)
        for index, (depth, token) in enumerate(alternatives, len(ids)):
            self._ids_memory[index] = token
            self._positions_memory[index] = start + 1 + depth
        try:
            bound.mask.hide(len(ids), alternatives)
            return bound.output, self._timed(bound.binding)
        finally:
            # Whatever ended the pass, an interrupt too: a mark that stayed would hide true tokens from later passes of this width.
            bound.mask.show(len(ids), alternatives)

    def _timed(self, binding: ort.IOBinding) -> float:
        begun = time.perf_counter()
        self.session.run_with_iobinding(binding)
        return time.perf_counter() - begun

    def run_wide(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> tuple[StepOutput, float]:
        """Runs one pass of any width through fresh buffers; gives the chosen positions and the seconds inside the run call."""
        if self._wide is None:
            self._wide = self._bind_cache()
        binding, count = self._wide, len(positions)
        tokens = np.asarray(ids, dtype=np.int64).reshape(1, -1)
        index = np.asarray(positions, dtype=np.int64).reshape(1, -1)
        output = self._output_buffers(count)
        positions_of = np.arange(start, start + tokens.size, dtype=np.int64).reshape(1, -1)
        mask = TreeMask(tokens.size) if self._takes_mask else None
        self._set_length(start, tokens.size)
        self._bind_small(binding, tokens, positions_of, index, mask, output)
        return output, self._timed(binding)

    def _set_length(self, start: int, width: int) -> None:
        self._lengths_memory[0] = start + width - 1
        self._lengths_memory[1] = start + width
        self._past_length_memory[0] = start

    def _bind_width(self, width: int) -> _Bound:
        if width > len(self._ids):
            raise ValueError(f"a pass of {width} positions is wider than the {len(self._ids)} this engine has buffers for")
        bound = _Bound(self._bind_cache(), self._buffers.head(width), TreeMask(width))
        ids, positions, index = (part[:width].reshape(1, -1) for part in (self._ids, self._positions, self._index))
        self._bind_small(bound.binding, ids, positions, index, bound.mask, bound.output)
        return bound

    def _bind_cache(self) -> ort.IOBinding:
        binding = self.session.io_binding()
        self._cache.bind(binding, self.session)
        bind_input(binding, graph_io.SEQLENS_K, self._lengths[:1])
        bind_input(binding, graph_io.TOTAL_SEQUENCE_LENGTH, self._lengths[1:].reshape(()))
        if self._takes_mask:
            bind_input(binding, graph_io.PAST_LENGTH, self._past_length)
        return binding

    def _bind_small(
        self,
        binding: ort.IOBinding,
        ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        index: NDArray[np.int64],
        mask: TreeMask | None,
        output: StepOutput,
    ) -> None:
        bind_input(binding, graph_io.INPUT_IDS, ids)
        bind_input(binding, graph_io.POSITION_IDS, positions)
        if mask is not None and self._takes_mask:
            bind_input(binding, graph_io.TREE_MASK, mask.values)
        bind_input(binding, graph_io.LOGITS_INDEX, index)
        bind_output(binding, graph_io.TOKEN, output.tokens.reshape(1, -1))
        bind_output(binding, graph_io.CONFIDENCE, output.confidence.reshape(1, -1))
        bind_output(binding, graph_io.TOP_TOKENS, output.top_tokens.reshape(1, -1, self._num_top))
        bind_output(binding, graph_io.TOP_LOGITS, output.top_logits.reshape(1, -1, self._num_top))
        bind_output(binding, graph_io.LOGITS, output.logits.reshape(1, -1, self._vocab_size))

    def _output_buffers(self, count: int) -> StepOutput:
        return StepOutput(
            tokens=np.zeros(count, dtype=np.int64),
            confidence=np.zeros(count, dtype=np.float32),
            top_tokens=np.zeros((count, self._num_top), dtype=np.int64),
            top_logits=np.zeros((count, self._num_top), dtype=np.float32),
            logits=np.zeros((count, self._vocab_size), dtype=np.float32),
        )


@dataclass(frozen=True, slots=True)
class _Bound:
    """Everything of passes of one width, bound."""

    binding: ort.IOBinding
    output: StepOutput
    mask: TreeMask


@dataclass(frozen=True, kw_only=True)
class _SessionSettings:
    threads: int
    global_threads: bool

    def make(self) -> ort.SessionOptions:
        """Returns fresh options: sessions may change the ones they are given."""
        options = ort.SessionOptions()
        options.graph_optimization_level = OPTIMIZATION_LEVEL
        options.log_severity_level = 3
        options.use_per_session_threads = not self.global_threads
        if not self.global_threads:
            options.intra_op_num_threads = self.threads
            options.inter_op_num_threads = 1
            options.add_session_config_entry("session.force_spinning_stop", "1")
        return options


def _choose_threads(threads: int, global_threads: bool) -> _SessionSettings:
    """Settles which threads the sessions run on, and makes ONNX Runtime's process-wide pool if that is asked for and not done.

    Where that pool exists, ONNX Runtime (1.32) opens sessions on it alone, and its size cannot be changed.
    """
    with _global_pool_lock:
        exists = _has_global_pool()
        if global_threads and not exists:
            ort.set_global_thread_pool_sizes(threads, 1)
            _global_pool_threads.append(threads)
        if not exists:
            return _SessionSettings(threads=threads, global_threads=global_threads)
        size = _global_pool_threads[0] if _global_pool_threads else None  # None: the host program's
    if global_threads and size != threads:
        found = "the host program's" if size is None else f"{size} threads"
        logger.warning("the process-wide thread pool exists already and keeps its size: %s, where %d were asked for", found, threads)
    elif not global_threads:
        logger.info("this process has a process-wide thread pool, and its sessions can use no other")
    return _SessionSettings(threads=threads if size is None else size, global_threads=True)


def _has_global_pool() -> bool:
    """Finds out whether anyone in this process made the process-wide pool; ONNX Runtime tells only by refusing sessions without it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(b"", options, providers=_PROVIDERS, enable_fallback=False)
    except Exception as err:  # noqa: BLE001 - it fails either way, as there is no model in no bytes, and its errors share no nearer base
        return "use_per_session_threads" in str(err)
    return False


def _return_freed_memory() -> None:
    """Gives the heap that opening the sessions used and freed back to the system: glibc keeps it, 10 MB and more."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _check_contract(session: ort.InferenceSession, name: str, *, is_draft: bool) -> None:
    inputs = {v.name for v in session.get_inputs()}
    outputs = {v.name for v in session.get_outputs()}
    needed = {graph_io.INPUT_IDS, graph_io.SEQLENS_K, graph_io.TOTAL_SEQUENCE_LENGTH, graph_io.POSITION_IDS, graph_io.LOGITS_INDEX}
    wanted = (needed if is_draft else needed | {graph_io.PAST_LENGTH, graph_io.TREE_MASK}) - inputs
    wanted |= {graph_io.TOKEN, graph_io.CONFIDENCE, graph_io.TOP_TOKENS, graph_io.TOP_LOGITS, graph_io.LOGITS} - outputs
    if wanted:
        raise ArtifactError(f"{name} lacks {', '.join(sorted(wanted))}", "export the model again")
