"""The interface between decoding and backends: KV-cache slots for sequences, and forward passes on them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ssruntime.artifact import DraftEntry
from ssruntime.machine import cpu_model
from ssruntime.proposal import Alternative
from ssruntime.sampling.top_tokens import top_tokens as most_probable


@dataclass(slots=True)
class StepOutput:
    """The outputs of one pass, one row for each of its N requested tokens.

    The arrays are views of buffers that the slot's next pass through the same engine may overwrite.

    Attributes:
        tokens: int64[N], the most probable next token of each row.
        confidence: float32[N], the probability of that token at temperature 1.
        top_tokens: int64[N, num_top], the most probable next tokens, best first, ties by lower id.
        top_logits: float32[N, num_top], the logits of `top_tokens`.
        logits: float32[N, vocab], the logits of the whole vocabulary.
    """

    tokens: NDArray[np.int64]
    confidence: NDArray[np.float32]
    top_tokens: NDArray[np.int64]
    top_logits: NDArray[np.float32]
    logits: NDArray[np.float32]
    # The same memory, for reading single elements: numpy is much slower at that right after a pass, which
    # evicts everything else from the CPU's caches.
    _tokens: memoryview = field(init=False, repr=False)
    _confidence: memoryview = field(init=False, repr=False)
    _top_tokens: memoryview = field(init=False, repr=False)
    _top_logits: memoryview = field(init=False, repr=False)
    # Kept because ports return the same object for every pass of a query length.
    _tails: dict[int, StepOutput] = field(init=False, repr=False, default_factory=dict)
    _tops: dict[int, tuple[Sequence[int], Sequence[float]]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._tokens, self._confidence = self.tokens.data, self.confidence.data
        self._top_tokens, self._top_logits = self.top_tokens.reshape(-1).data, self.top_logits.reshape(-1).data

    def head(self, count: int) -> StepOutput:
        """Returns the first `count` rows, over the same memory."""
        return self._part(slice(count))

    def tail(self, first: int) -> StepOutput:
        """Returns the rows from `first` on, over the same memory."""
        tail = self._tails.get(first)
        if tail is None:
            tail = self._tails[first] = self._part(slice(first, None))
        return tail

    def _part(self, chosen: slice) -> StepOutput:
        return StepOutput(
            tokens=self.tokens[chosen],
            confidence=self.confidence[chosen],
            top_tokens=self.top_tokens[chosen],
            top_logits=self.top_logits[chosen],
            logits=self.logits[chosen],
        )

    def without(self, tokens: Collection[int], rows: Sequence[int]) -> StepOutput:
        """Returns the output, in memory of its own, with probability 0 for some tokens in some rows."""
        logits = self.logits.copy()
        banned = np.array([token for token in tokens if token < logits.shape[1]], dtype=np.int64)
        top_tokens, top_logits, confidence = self.top_tokens.copy(), self.top_logits.copy(), self.confidence.copy()
        count = top_tokens.shape[1]
        for row in rows:
            logits[row][banned] = -np.inf
            best = most_probable(logits[row], count)
            top_tokens[row], top_logits[row] = best, logits[row][best]
            confidence[row] = 1.0 / np.exp((logits[row] - logits[row][best[0]]).astype(np.float64)).sum()
        return StepOutput(top_tokens[:, 0].copy(), confidence, top_tokens, top_logits, logits)

    def token(self, row: int) -> int:
        """Returns the most probable next token of a row."""
        token: int = self._tokens[row]
        return token

    def probability(self, row: int) -> float:
        """Returns the probability, at temperature 1, of a row's most probable next token."""
        probability: float = self._confidence[row]
        return probability

    def top(self, row: int) -> tuple[Sequence[int], Sequence[float]]:
        """Returns a row's `top_tokens` and `top_logits`, not copied because callers read few of them."""
        top = self._tops.get(row)
        if top is None:
            count = self.top_tokens.shape[1]
            chosen = slice(row * count, (row + 1) * count)
            top = cast("Sequence[int]", self._top_tokens[chosen]), cast("Sequence[float]", self._top_logits[chosen])
            self._tops[row] = top
        return top


PREFILL_CHUNK: Final = 256
"""Most prompt tokens in one pass: enough to use all cores, few enough to keep the activations small."""

PassKind = Literal["prefill", "draft", "verify"]


class Pass(NamedTuple):
    """A forward pass that a sequence asks for.

    Attributes:
        kind: `prefill` and `verify` run the verify engine, `draft` the draft engine. The output of `verify`
            has a row for each token, that of the others the row of the last one. `draft` and `verify` take at
            most `MAX_QUERY_LENGTH` tokens.
        trunk: token ids of the pass, or trunk of its token tree.
        start: position of the first one.
        branches: side branches of the token tree; only in a verify pass.
    """

    kind: PassKind
    trunk: Sequence[int]
    start: int
    branches: Sequence[Alternative] = ()


make_pass: Final[Callable[[tuple[PassKind, Sequence[int], int, Sequence[Alternative]]], Pass]] = functools.partial(tuple.__new__, Pass)
"""Makes a `Pass` from its values, faster than the class does, which calls a Python function."""


def prefill_passes(ids: Sequence[int], size: int, block: int) -> Iterator[Pass]:
    """Yields the passes that run a prompt through the model, each of at most `size` tokens.

    The attention kernel computes the rows of a pass in blocks, and it rounds a block of one row differently
    (see `ssruntime.graph_io`). Where a pass would end in such a block, its last token gets its own pass.

    Args:
        ids: token ids of the prompt.
        size: largest number of tokens in a pass.
        block: number of rows in a block of the attention kernel.
    """
    start = 0
    while start < len(ids):
        wanted = prefill_pass(ids, start, size, block)
        yield wanted
        start += len(wanted.trunk)


def prefill_pass(ids: Sequence[int], start: int, size: int, block: int) -> Pass:
    """Returns the pass that runs the next chunk of a prompt through the model.

    Args:
        ids: token ids of the prompt.
        start: number of tokens that have been run.
        size: as for `prefill_passes`.
        block: as for `prefill_passes`.
    """
    chunk = ids[start : start + size]
    last = len(chunk) - 1
    return Pass("prefill", chunk[:last] if block > 1 and last > 0 and last % block == 0 else chunk, start)


class Slot(Protocol):
    """One sequence's KV cache, bound to all engines. Used by one thread at a time.

    Positions count from 0. A pass over S tokens that starts at position `start` writes the entries
    `[start, start + S)` of the KV cache and attends to all entries before them; a pass of one token may also
    overwrite the entry after its own. To roll back, start the next pass at a smaller `start`.
    """

    max_context: int
    alternatives_end: int
    """First KV-cache entry that no alternative may use: the narrowest sliding window, at most `max_context`;
    0 on a backend without token trees.

    Kernels apply a sliding window by entry. The entry of an alternative has a higher index than its position
    in the text, so the window would hide tokens that the alternative must attend to."""
    prefill_chunk: int
    """Largest number of prompt tokens in one pass."""
    attention_block: int
    """Number of rows in a block of the attention kernel; see `prefill_passes`."""
    place: int
    """Passes that sequences share cost less in slots of lower places."""
    engine_seconds: float
    """Time spent in the engines' run calls since it was last set to 0, in seconds."""

    def run(self, wanted: Pass) -> StepOutput:
        """Returns the output of a pass that a sequence asks for."""

    def prefill(self, ids: Sequence[int]) -> StepOutput:
        """Returns the output after a prompt's last token (N = 1).

        Runs the prompt through the verify engine in chunks, from position 0.
        """

    def forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """Returns the outputs of some tokens of one verify-engine pass of any query length.

        Args:
            ids: the tokens of the pass.
            start: position of the first one.
            positions: 0-based indices into `ids` of the tokens whose output is returned, in that order.
        """

    def verify(self, ids: Sequence[int], start: int, branches: Sequence[Alternative] = ()) -> StepOutput:
        """Returns a row for each token of one verify-engine pass of at most `MAX_QUERY_LENGTH` tokens.

        Args:
            ids: trunk of the token tree.
            start: position of the first of `ids`.
            branches: side branches of the tree (see `TokenTree`).
        """

    def draft(self, ids: Sequence[int], start: int) -> StepOutput:
        """Returns the output after the last of at most `MAX_QUERY_LENGTH` tokens (N = 1), from the draft."""

    def draft_forward(self, ids: Sequence[int], start: int, positions: Sequence[int]) -> StepOutput:
        """Returns the same as `forward`, from the draft engine, to measure a draft's own parity."""

    def touch(self, length: int) -> None:
        """Writes into the first `length` entries of the KV cache, so that passes cost what they cost later.

        Where memory is given only to entries that were written, others are read faster than real ones.
        """

    def trim(self, *, everything: bool = False) -> None:
        """Gives memory of the KV cache back, most of it after a long sequence or all; its content is lost."""

    def read_kv(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Fills blocks of equal size from the entries of the KV cache that begin with `start`.

        Args:
            start: first entry.
            blocks: contiguous arrays, of `Backend.kv_entry_bytes` for each entry. Only `write_kv` of a slot
                of the same backend knows how they are filled.
        """

    def write_kv(self, start: int, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Writes blocks that `read_kv` filled to the entries that begin with `start`."""

    def use_draft(self, draft: DraftEngine) -> None:
        """Replaces the draft engine of this slot; the KV cache stays the same."""

    def preserved(self, start: int, stop: int) -> AbstractContextManager[None]:
        """Returns a context manager that restores the KV-cache entries `[start, stop)` at its end.

        Only the entries of the draft's own layers are restored: drafting writes no others.
        """


class DraftEngine(Protocol):
    """An open draft, from `Backend.open_draft`, for slots of the same backend."""


class OpenGraph(Protocol):
    """A graph over the artifact's weights that is not one of its engines, such as a part of the model."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[np.generic]]) -> list[NDArray[Any]]:
        """Returns outputs of one pass from position 0, with an empty KV cache.

        Args:
            outputs: names of the outputs.
            feeds: inputs by name, of which the first begins with the dimensions [B, S]. Those that the graph
                lacks are ignored; RoPE tables and the KV cache are added.
        """


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """How to open the engines of an artifact; see `ssruntime.load`."""

    threads: int
    max_context: int
    max_sequences: int
    draft: DraftEntry | None
    bit_exact: bool
    verify_digests: bool
    global_threads: bool
    on_cpu: bool = False
    bake_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What the open engines of a backend can do.

    Attributes:
        max_rows: largest number of sequences in one pass.
        token_trees: whether verify passes may have side branches.
        logits_on_device: whether all logits stay in the device's memory until `StepOutput.logits` is read.
        bit_exact: whether every kind of pass is meant to give a token's logits to the bit. The bit test tells
            whether the machine's kernels do.
    """

    max_rows: int
    token_trees: bool
    logits_on_device: bool
    bit_exact: bool


def processor_of(backend: Backend) -> str:
    """Returns the name of what a backend computes on: the processor's model, or the GPU and its library."""
    return cpu_model() if backend.device == "cpu" else backend.device


class Backend(Protocol):
    """The open engines of one artifact. Safe to use from several threads."""

    vocab_size: int
    max_context: int
    alternatives_end: int
    """As in `Slot`, for slots of the whole context."""
    has_draft: bool
    threads: int
    """Number of threads that each engine computes with."""
    device: str
    """`cpu`, or the GPU and the library that runs on it."""
    capabilities: Capabilities
    kv_entry_bytes: int
    """Size of one entry of a sequence's KV cache, in all layers together."""
    packing: str
    """`shared` if one copy of the packed weights serves every engine and process of this host, or
    `private (why)`."""

    def acquire(self, timeout: float | None, cancel: threading.Event | None = None) -> Slot:
        """Returns a slot from the pool.

        Args:
            timeout: longest wait for a slot, in seconds; None waits without a limit.
            cancel: once another thread sets it, the wait ends.

        Raises:
            BackendUnavailableError: if no slot is released in time.
            WaitCancelledError: if the wait was cancelled; see `ssruntime.backends.pool`.
        """

    def release(self, slot: Slot) -> None:
        """Gives a slot back."""

    def move(self, slot: Slot, length: int, use: Callable[[Slot], None]) -> bool:
        """Moves a sequence to a free slot of lower `place`, if there is one; returns whether it did.

        Args:
            slot: acquired slot of the sequence, which is free afterwards.
            length: number of leading entries of its KV cache that the sequence still needs.
            use: called with the new slot, which holds these entries, before the old one is free.
        """

    def run(self, passes: Sequence[tuple[Slot, Pass]]) -> list[StepOutput]:
        """Returns the outputs of passes of different sequences, which share engine passes where they can.

        Each output is what `Slot.run` gives for the pass alone; with `capabilities.bit_exact`, to the bit.

        Args:
            passes: acquired slots, each at most once, and the pass that its sequence wants.
        """

    def open_draft(self, graph: bytes, name: str, own: Mapping[str, NDArray[Any]] | None = None) -> DraftEngine:
        """Returns another draft over the same weights, for slots made by `new_slot`.

        Args:
            graph: a serialized ONNX model; each of its weights is one of the verify graph or of `own`.
            name: name of the draft in error messages.
            own: weights that only this draft has, by initializer name; they must not change as long as it is
                used. None if it has none.

        Raises:
            ArtifactError: if the graph cannot be opened or is not a draft of this artifact.
            BackendUnavailableError: if drafts have no weights of their own on this backend.
        """

    def open_graph(self, graph: bytes, name: str) -> OpenGraph:
        """Returns any graph over the same weights; arguments and errors are those of `open_draft`."""

    def new_slot(self, max_context: int, draft: DraftEngine | None = None) -> Slot:
        """Returns a new slot that does not belong to the pool.

        Args:
            max_context: positions of its KV cache; at most the backend's own `max_context` is used.
            draft: its draft, from `open_draft`; None for a slot that cannot draft.

        Raises:
            BackendUnavailableError: if the backend is closed.
        """

    def close(self) -> None:
        """Drops the engines and the buffers."""
