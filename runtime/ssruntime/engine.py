"""The runtime's public API: `load` opens an artifact, and `Engine` generates text with it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import abc
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ssruntime.acceptance import make_acceptance
from ssruntime.artifact import Artifact, DraftEntry, check_digests, read_artifact
from ssruntime.backends.base import Backend, BackendOptions, Slot, processor_of
from ssruntime.backends.pool import WaitCancelledError
from ssruntime.backends.registry import target_of
from ssruntime.checks import check_int
from ssruntime.config import DecodeSettings, GenerationConfig
from ssruntime.errors import ArtifactError, BackendUnavailableError, ConfigError
from ssruntime.folder_lock import require_locks
from ssruntime.machine import default_threads
from ssruntime.pass_costs.planners import Planners
from ssruntime.planning.planner import Planner
from ssruntime.prefix_cache import BLOCK, PrefixCache
from ssruntime.preparation import Preparer, Request, context_limit
from ssruntime.proposers import Parts, make_proposer
from ssruntime.results import Chunk, Completion, DecodeStats, Trace
from ssruntime.scheduler.batch import Batch
from ssruntime.scheduler.cached_prefix import CachedPrefix
from ssruntime.scheduler.member import CANCELLED, Member
from ssruntime.scheduler.single import decode
from ssruntime.sequence import Sequence
from ssruntime.text.output import OutputText
from ssruntime.text.prompt import Prompt

logger = logging.getLogger(__name__)

DEFAULT_MAX_SEQUENCES: Final = 4
MAX_THREADS: Final = 1024


def load(
    path: str | Path,
    *,
    verify: bool = False,
    threads: int | None = None,
    max_context: int | None = None,
    max_sequences: int = DEFAULT_MAX_SEQUENCES,
    draft: bool | str = True,
    prefix_cache: int | None = None,
    bit_exact: bool = True,
    global_threads: bool = False,
    on_cpu: bool = False,
    bake_weights: bool = False,
) -> Engine:
    """Returns an `Engine` with the artifact's engines open.

    Args:
        path: folder of the artifact.
        verify: whether to check the digest of every file against the manifest first. Without it, only
            presence, sizes and schema are checked.
        threads: number of threads of each engine. Default: the physical cores that this process may use.
        max_context: largest number of tokens in a sequence, prompt included. Default: the artifact's limit,
            but at most 4096.
        max_sequences: number of sequences that can be decoded at the same time, each with its own KV cache.
            Further requests wait.
        draft: whether to open a draft engine, or the name of the artifact's draft to open. By default it is
            the first one. Without a draft, only autoregressive decoding (mode `plain`) is possible.
        prefix_cache: most bytes of KV to keep of earlier texts, for prompts that begin like them; 0 keeps
            none. Default: as much as one sequence of `max_context` tokens has, if passes give a token's KV
            and logits to the bit, as on `ort-cpu` with `bit_exact`; otherwise 0.
        bit_exact: whether a pass of one token gives the logits of wider passes to the bit. Without it, such a
            pass is computed by the kernel for a single row, which is faster on some processors. Near ties may
            then be decided differently in the two modes.
        global_threads: whether to use ONNX Runtime's process-wide thread pool, and to create it if there is
            none. This is slightly faster for small models. Every later session of the process must then be
            made with `SessionOptions.use_per_session_threads = False`, because ONNX Runtime refuses any
            other. The pool keeps the size that it was created with. Loads without this flag also use the pool
            if it exists.
        on_cpu: whether the graphs of a target for GPUs run on the processor instead: slowly, to check an
            artifact on a machine without its GPU.
        bake_weights: whether each engine of TensorRT holds weights of its own, in the layout that it prefers,
            instead of reading one copy for all. It takes more memory, and may be faster on some hardware.

    Raises:
        ArtifactError: if the artifact is missing, damaged or has another schema version.
        ConfigError: if a setting is out of range.
        BackendUnavailableError: if what the artifact's target needs is not installed, memory for the KV
            caches cannot be reserved, or this system has no folder locks.
    """
    require_locks()
    artifact = read_artifact(Path(path))
    target = target_of(artifact.manifest)
    if verify:
        check_digests(artifact)
    context = context_limit(artifact.manifest, max_context)
    thread_count = checked_threads(threads)
    check_int("max_sequences", max_sequences, 1)
    check_int("prefix_cache", prefix_cache, 0)
    entry = _chosen_draft(artifact, draft)
    if entry is not None:
        _check_draft_settings(entry)
    preparer = Preparer(artifact, entry, context)

    options = BackendOptions(
        threads=thread_count,
        max_context=context,
        max_sequences=max_sequences,
        draft=entry,
        bit_exact=bit_exact,
        verify_digests=verify,
        global_threads=global_threads,
        on_cpu=on_cpu,
        bake_weights=bake_weights,
    )
    backend = target.load().open_backend(artifact, options)
    if entry is not None:
        _warn_of_other_processor(artifact, processor_of(backend))
    return Engine(
        preparer=preparer,
        backend=backend,
        max_sequences=max_sequences,
        prefix_cache=PrefixCache(_prefix_capacity(prefix_cache, backend), backend.kv_entry_bytes),
    )


class Engine:
    """The open engines of one artifact. Threads may share it: their requests share passes.

    Attributes:
        prefix_cache: KV of earlier texts, and counts of its use.
    """

    def __init__(
        self,
        *,
        preparer: Preparer,
        backend: Backend,
        max_sequences: int,
        prefix_cache: PrefixCache,
    ) -> None:
        """Combines the parts of an engine. Call `load` instead."""
        self.max_sequences = max_sequences
        self.artifact = preparer.artifact
        self.backend = backend
        self.preparer = preparer
        self.prefix_cache = prefix_cache
        self._is_closed = False
        self._planners = Planners(preparer.artifact, backend, preparer.draft)
        self._batch = Batch(backend)

    def generate(
        self,
        prompt: Prompt | Request,
        config: GenerationConfig | None = None,
        *,
        timeout: float | None = None,
        cancel: threading.Event | None = None,
        trace: Trace | None = None,
    ) -> Completion:
        """Returns the completion of a prompt, after decoding to its end.

        Args:
            prompt: text (the tokenizer adds its special tokens), token ids (a sequence, array or tensor),
                chat messages, or a `Chat`. A chat also ends with the tokenizer's end-of-sequence token. Or a
                request from `prepare`, which has its settings.
            config: decoding settings. Default: all settings are taken from the artifact.
            timeout: seconds that the whole request may take; None sets no limit. A request that still waits
                for a free sequence then fails. One that is decoding ends with finish reason `timeout`.
            cancel: once another thread sets it, the request ends with finish reason `cancelled`: within one
                pass, or at once if it waits for a free sequence.
            trace: record to fill with the verify passes, from which they can be replayed exactly.

        Raises:
            PromptError: if the prompt cannot be used.
            ContextOverflowError: if the prompt leaves no room for a generated token.
            ConfigError: if the settings do not fit this artifact.
            BackendUnavailableError: if no sequence became free in time, or this engine is closed.
        """
        request = self.prepare(prompt, config)
        try:
            with self._joined(request, timeout, cancel, trace) as (member, text):
                news = list(self._batch.read(member))
        except WaitCancelledError:
            return _cancelled(request)
        tokens = [token for one in news for token in one.tokens]
        sequence = member.sequence
        assert sequence.finish_reason is not None
        return Completion(
            text="".join(one.text or "" for one in news) + text.finish(tokens),
            token_ids=tokens,
            finish_reason=sequence.finish_reason,
            seed=request.settings.seed,
            stats=sequence.stats,
            prompt_tokens=len(request.ids),
            logprobs=None if request.settings.logprobs is None else sequence.logprobs,
        )

    def decode_on(
        self,
        slot: Slot,
        ids: abc.Sequence[int],
        settings: DecodeSettings,
        *,
        planner: Planner | None = None,
        trace: Trace | None = None,
    ) -> tuple[list[int], DecodeStats]:
        """Returns the tokens and statistics of decoding on the caller's slot, with the draft of that slot.

        This serves to measure drafts that are not in the artifact. It does not use the prefix cache.

        Args:
            slot: slot that no other thread uses during the call.
            ids: token ids of the prompt.
            settings: completed decoding settings.
            planner: costs and acceptance probabilities of that draft; None for those of this engine's draft.
            trace: record to fill with the verify passes.
        """
        planner = planner or self._planners.planner_for(settings, slot)
        sequence, _ = self._begin(slot, ids, settings, planner, trace)
        return [token for new in decode(sequence, slot, costs=planner.recorder) for token in new], sequence.stats

    def stream(
        self,
        prompt: Prompt | Request,
        config: GenerationConfig | None = None,
        *,
        timeout: float | None = None,
        cancel: threading.Event | None = None,
        trace: Trace | None = None,
    ) -> Iterator[Chunk]:
        """Returns an iterator over the text as it is generated.

        The arguments and errors are those of `generate`. Prompt and settings are checked in this call. The
        wait for a free sequence begins with the first chunk. Closing the iterator early frees the sequence.
        """
        request = self.prepare(prompt, config)
        return self._stream(request, timeout, cancel, trace)

    def settings(self, config: GenerationConfig | None = None) -> DecodeSettings:
        """Returns a configuration completed from the artifact's settings and the defaults.

        Raises:
            ConfigError: if the settings do not fit this artifact, such as mode `speculative` without an open
                draft.
        """
        return self.preparer.settings(config)

    def encode(self, prompt: Prompt) -> list[int]:
        """Returns the prompt's token ids.

        Raises:
            PromptError: if the prompt cannot be used.
            ContextOverflowError: if the prompt leaves no room for a generated token.
        """
        return self.preparer.encode(prompt)

    def decode(self, ids: abc.Sequence[int]) -> str:
        """Returns the text of token ids, special tokens included.

        Raises:
            PromptError: if an id is not one of this model.
        """
        return self.preparer.codec.decode(ids)

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes that a token adds to a text, which need not be whole characters."""
        return self.preparer.codec.token_bytes.of(token)

    @property
    def kv_usage(self) -> float:
        """The share, 0 to 1, of all KV-cache entries that running requests use."""
        return self._batch.tokens / (self.max_sequences * self.backend.max_context)

    def prepare(self, prompt: Prompt | Request, config: GenerationConfig | None = None, *, prefix_namespace: str = "") -> Request:
        """Returns a checked request for `generate` and `stream`; arguments and errors are theirs.

        Args:
            prompt: as in `generate`.
            config: as in `generate`.
            prefix_namespace: the prefix cache is shared only with requests of the same namespace, such as
                those of one user. Others could learn from their times how long texts begin alike.
        """
        return self.preparer.prepare(prompt, config, prefix_namespace=prefix_namespace)

    def warm_up(self, timeout: float | None = None) -> None:
        """Measures the costs of passes now, if this host has not measured them, so that no request has to.

        Passes that several sequences share are measured only here.

        Args:
            timeout: longest wait for a free sequence, in seconds; None waits without a limit.

        Raises:
            BackendUnavailableError: if no sequence became free in time, or this engine is closed.
        """
        slots = [self._acquire(timeout)]
        try:
            with contextlib.suppress(BackendUnavailableError):  # requests have the others
                while len(slots) < self.max_sequences:
                    slots.append(self._acquire(0.0))
            self._planners.measure_shared(slots)
        finally:
            for slot in slots:
                self.backend.release(slot)

    def close(self) -> None:
        """Closes the engine: running requests finish, new ones are refused.

        Unused KV caches are freed at once, ONNX Runtime's sessions with the last reference to this engine.
        """
        self._is_closed = True
        self.prefix_cache.close()
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def _stream(self, request: Request, timeout: float | None, cancel: threading.Event | None, trace: Trace | None) -> Iterator[Chunk]:
        try:
            with self._joined(request, timeout, cancel, trace) as (member, text):
                for news in self._batch.read(member):
                    tokens, logprobs = tuple(news.tokens), tuple(news.logprobs)
                    if news.is_last:
                        sequence = member.sequence
                        yield Chunk(text.finish(tokens), tokens, sequence.finish_reason, sequence.stats, logprobs)
                    else:
                        yield Chunk(text.take(tokens) if news.text is None else news.text, tokens, logprobs=logprobs)
        except WaitCancelledError:
            yield Chunk("", (), CANCELLED, DecodeStats())

    @contextlib.contextmanager
    def _joined(
        self, request: Request, timeout: float | None, cancel: threading.Event | None, trace: Trace | None
    ) -> Iterator[tuple[Member, OutputText]]:
        """Returns a context manager that yields a new request, and its text, and removes it at the end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        slot = self._acquire(timeout, cancel)
        try:
            planner, deadline = self._planner(request.settings, slot, deadline)
            sequence, text = self._begin(slot, request.ids, request.settings, planner, trace)
            prefix = CachedPrefix(self.prefix_cache, request.prefix_namespace) if self.prefix_cache.is_on else None
            member = Member(sequence, slot, text, costs=planner.recorder, prefix=prefix, deadline=deadline, cancel=cancel)
        except BaseException:
            self.backend.release(slot)
            raise
        self._batch.join(member)
        try:
            yield member, text
        finally:
            self._batch.leave(member)

    def _planner(self, settings: DecodeSettings, slot: Slot, deadline: float | None) -> tuple[Planner, float | None]:
        """Returns the planner of a request, and its deadline, which is later if costs had to be measured."""
        begun = time.monotonic()
        planner = self._planners.planner_for(settings, slot)
        return planner, None if deadline is None else deadline + time.monotonic() - begun

    def _acquire(self, timeout: float | None, cancel: threading.Event | None = None) -> Slot:
        if self._is_closed:
            raise BackendUnavailableError("this engine is closed", "load the artifact again")
        return self.backend.acquire(timeout, cancel)

    def _begin(
        self, slot: Slot, ids: abc.Sequence[int], settings: DecodeSettings, planner: Planner, trace: Trace | None
    ) -> tuple[Sequence, OutputText]:
        """Returns a new sequence for a slot, and the text that it writes to."""
        codec, acceptance = self.preparer.codec, make_acceptance(settings, len(ids))
        text = OutputText(
            codec.tokenizer,
            ids,
            stops=settings.stop,
            special_tokens=codec.special_tokens,
            skip_special_tokens=settings.skip_special_tokens,
        )
        sequence = Sequence(
            ids,
            settings,
            slot,
            acceptance=acceptance,
            proposer=make_proposer(Parts(settings, acceptance, planner, slot.alternatives_end)),
            stop_watch=text if text.has_stops else None,
            prefill_chunk=self._batch.first_chunk(len(ids)),
            trace=trace,
        )
        return sequence, text


def _cancelled(request: Request) -> Completion:
    """Returns what a request gives that was cancelled while it waited for a sequence."""
    return Completion(
        text="",
        token_ids=[],
        finish_reason=CANCELLED,
        seed=request.settings.seed,
        stats=DecodeStats(),
        prompt_tokens=len(request.ids),
        logprobs=None if request.settings.logprobs is None else [],
    )


def _warn_of_other_processor(artifact: Artifact, processor: str) -> None:
    """Warns if the draft was tuned on another kind of processor: another draft may be faster on this one."""
    tuning = artifact.manifest.tuning
    if tuning is not None and tuning.cpu != processor:
        logger.warning(
            "%s was tuned on another kind of processor (%s; this one is %s): the text is the same, but another draft may be faster;"
            " to tune it on this machine: sstool search --artifact %s",
            artifact.folder.name,
            tuning.cpu,
            processor,
            artifact.folder,
        )


def _prefix_capacity(given: int | None, backend: Backend) -> int:
    """Returns the size of the prefix cache in bytes.

    Where a pass of another width rounds differently, a text could depend on what was asked before. So it is
    off there by default.

    Raises:
        ConfigError: if the cache could hold nothing.
    """
    if given is None:
        return backend.max_context * backend.kv_entry_bytes if backend.capabilities.bit_exact else 0
    least = BLOCK * backend.kv_entry_bytes
    if 0 < given < least:
        raise ConfigError(f"prefix_cache is out of range: {given}", f"it must be 0, or at least {least} bytes, for {BLOCK} tokens")
    return given


def checked_threads(threads: int | None) -> int:
    """Returns the number of threads of an engine: `threads`, or the default if that is None.

    Raises:
        ConfigError: if the number is out of range.
    """
    check_int("threads", threads, 1, MAX_THREADS)
    return default_threads() if threads is None else threads


def _chosen_draft(artifact: Artifact, draft: bool | str) -> DraftEntry | None:
    if draft is False:
        return None
    found = artifact.manifest.draft(None if draft is True else draft)
    if found is None and draft is not True:
        names = ", ".join(entry.name for entry in artifact.manifest.drafts) or "none"
        raise ConfigError(f"draft: the artifact has no draft {draft!r}", f"drafts of {artifact.folder.name}: {names}")
    return found


def _check_draft_settings(entry: DraftEntry) -> None:
    try:
        GenerationConfig(mode=entry.mode, max_alternatives=entry.max_alternatives)
    except ConfigError as err:
        raise ArtifactError(f"manifest.json: draft {entry.name!r}: {err.message}", "export the model again") from err
