"""Load an artifact and generate with it: the runtime's public surface."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ssruntime.acceptance import make_acceptance
from ssruntime.artifact import GENERATION_CONFIG, Artifact, DraftEntry, StoppingRule, check_digests, read_artifact
from ssruntime.backends.base import Backend, Slot
from ssruntime.checks import check_int
from ssruntime.config import CheckpointDefaults, DecodeSettings, GenerationConfig, check_stopping_rule, complete, read_generation_config
from ssruntime.decode import Request, decode
from ssruntime.errors import ArtifactError, BackendUnavailableError, ConfigError, ContextOverflowError
from ssruntime.machine import cpu_model, default_threads
from ssruntime.proposers.skip import SkipProposer
from ssruntime.results import Chunk, Completion, DecodeStats, Trace
from ssruntime.stopping import make_stopping_policy
from ssruntime.text.codec import Prompt, PromptCodec
from ssruntime.text.output import OutputText

logger = logging.getLogger(__name__)

DEFAULT_MAX_CONTEXT: Final = 4096
"""Context a load makes room for unless told: a cache costs memory in proportion."""
DEFAULT_MAX_SEQUENCES: Final = 4
MAX_THREADS: Final = 1024


def load(
    path: str | Path,
    *,
    verify: bool = False,
    threads: int | None = None,
    max_context: int | None = None,
    max_sequences: int = DEFAULT_MAX_SEQUENCES,
    draft: bool = True,
    global_threads: bool = False,
) -> Engine:
    """Opens an artifact's engines.

    Args:
        path: the artifact's folder.
        verify: hash every file against the manifest first; otherwise presence, sizes and schema are checked.
        threads: threads of each engine. Default: the physical cores that this process may use.
        max_context: tokens a sequence may have, prompt included. Default: the artifact's, at most 4096.
        max_sequences: sequences that may be decoded at once, each with its own cache; further callers wait.
        draft: open the draft engine too; without it only plain decoding is possible.
        global_threads: use ONNX Runtime's process-wide thread pool, and make it if nobody has. A little faster for small models, but from
            then on every session of the process must be made with `SessionOptions.use_per_session_threads = False`: ONNX Runtime refuses
            others. The pool's size stays what its first user made it. Loads without the flag use a pool that exists.

    Raises:
        ArtifactError: if the artifact is missing, damaged or of another schema.
        ConfigError: if a setting is out of its range.
    """
    artifact = read_artifact(Path(path))
    if verify:
        check_digests(artifact)
    check_int("max_context", max_context, 1, artifact.manifest.max_context)
    context = min(artifact.manifest.max_context, DEFAULT_MAX_CONTEXT) if max_context is None else max_context
    thread_count = checked_threads(threads)
    check_int("max_sequences", max_sequences, 1)
    defaults = read_generation_config(artifact.path(GENERATION_CONFIG))
    if defaults.ignored:
        logger.warning("%s asks for settings that are not implemented, and are ignored: %s", GENERATION_CONFIG, ", ".join(defaults.ignored))
    codec = PromptCodec(artifact.folder, artifact.manifest.model.vocab_size)
    entry = artifact.manifest.drafts[0] if draft and artifact.manifest.drafts else None
    if entry is not None:
        _check_stopping_rule(entry)
        _tell_of_other_machine(artifact)

    # Imported here so that reading an artifact needs no ONNX Runtime.
    try:
        from ssruntime.backends.ort.backend import OrtBackend
    except ImportError as err:
        raise BackendUnavailableError(f"ONNX Runtime cannot be imported: {err}", "pip install 'sstool[cpu]'") from err
    backend = OrtBackend(
        artifact,
        threads=thread_count,
        max_context=context,
        max_sequences=max_sequences,
        draft=entry,
        verify_digests=verify,
        global_threads=global_threads,
    )
    return Engine(artifact=artifact, backend=backend, codec=codec, defaults=defaults, draft=entry)


class Engine:
    """The open engines of one artifact. Serves any number of threads at once, each request with its own cache."""

    def __init__(
        self, *, artifact: Artifact, backend: Backend, codec: PromptCodec, defaults: CheckpointDefaults, draft: DraftEntry | None
    ) -> None:
        """Puts the parts together; use `load`."""
        self.artifact = artifact
        self.backend = backend
        self.defaults = defaults
        self._codec = codec
        self._tuned: StoppingRule | None = None if draft is None else draft.tuned
        self._prefers_plain = draft is not None and draft.mode == "plain"
        self._is_closed = False

    def generate(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        timeout: float | None = None,
        trace: Trace | None = None,
    ) -> Completion:
        """Decodes to the end and returns everything.

        Args:
            prompt: a text (which gets the tokenizer's own special tokens), token ids, or chat messages.
            config: how to decode.
            timeout: seconds to wait for a free sequence; None waits for as long as it takes.
            trace: is filled with the verify passes, enough to run them again exactly.

        Raises:
            PromptError: if the prompt cannot be used; ContextOverflowError if it leaves no room for a token.
            ConfigError: if the settings do not fit this artifact.
            BackendUnavailableError: if no sequence came free in time.
        """
        settings, ids = self.settings(config), self.encode(prompt)
        slot = self._acquire(timeout)
        try:
            request = self._request(slot, ids, settings, trace)
            tokens = [token for kept in decode(request) for token in kept]
            text = _output(request).finish()
        finally:
            self.backend.release(slot)
        assert request.finish_reason is not None
        return Completion(
            text=text,
            token_ids=tokens,
            finish_reason=request.finish_reason,
            seed=settings.seed,
            stats=request.stats,
            prompt_tokens=len(ids),
        )

    def decode_on(
        self, slot: Slot, ids: Sequence[int], settings: DecodeSettings, *, trace: Trace | None = None
    ) -> tuple[list[int], DecodeStats]:
        """Decodes on a slot of the caller's own, with whatever draft it has: for measuring drafts that are not in the artifact.

        Args:
            slot: nobody else uses it meanwhile.
            ids: the prompt.
            settings: complete.
            trace: is filled with the verify passes.
        """
        request = self._request(slot, list(ids), settings, trace)
        return [token for kept in decode(request) for token in kept], request.stats

    def stream(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        timeout: float | None = None,
        trace: Trace | None = None,
    ) -> Iterator[Chunk]:
        """As `generate`, but yields text as it comes; closing the iterator early frees the sequence.

        The prompt and the settings are checked at once, before the first chunk is asked for.
        """
        settings, ids = self.settings(config), self.encode(prompt)
        return self._stream(ids, settings, timeout, trace)

    def settings(self, config: GenerationConfig | None = None) -> DecodeSettings:
        """Returns a configuration completed from the artifact: tuned exit, then the checkpoint's settings, then defaults.

        Raises:
            ConfigError: if speculative decoding is asked for and no draft is open.
        """
        return complete(config or GenerationConfig(), self.defaults, self._tuned, prefers_plain=self._prefers_plain)

    def encode(self, prompt: Prompt) -> list[int]:
        """Returns the prompt's token ids.

        Raises:
            PromptError: if the prompt cannot be used; ContextOverflowError if it leaves no room for a token.
        """
        ids = self._codec.encode(prompt)
        if len(ids) >= self.backend.max_context:
            raise ContextOverflowError(
                f"the prompt has {len(ids)} tokens, and the context of {self.backend.max_context} must hold at least one more",
                f"shorten it, or load with a larger max_context (this artifact's is {self.artifact.manifest.max_context})",
            )
        return ids

    def close(self) -> None:
        """Frees the engines. Requests that are running finish; new ones are refused."""
        self._is_closed = True
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def _stream(self, ids: list[int], settings: DecodeSettings, timeout: float | None, trace: Trace | None) -> Iterator[Chunk]:
        slot = self._acquire(timeout)
        try:
            request = self._request(slot, ids, settings, trace)
            for kept in decode(request):
                if request.finish_reason is None:
                    yield Chunk(text=_output(request).take(), token_ids=tuple(kept))
                else:
                    yield Chunk(_output(request).finish(), tuple(kept), request.finish_reason, request.stats)
        finally:
            self.backend.release(slot)

    def _acquire(self, timeout: float | None) -> Slot:
        if self._is_closed:
            raise BackendUnavailableError("this engine was closed", "load the artifact again")
        return self.backend.acquire(timeout)

    def _request(self, slot: Slot, ids: list[int], settings: DecodeSettings, trace: Trace | None) -> Request:
        acceptance = make_acceptance(settings)
        proposer = None
        if settings.mode == "speculative":
            proposer = SkipProposer(slot, acceptance, make_stopping_policy(settings), max_alternatives=settings.max_alternatives)
        return Request(
            slot=slot,
            prompt_ids=ids,
            settings=settings,
            acceptance=acceptance,
            proposer=proposer,
            text=OutputText(self._codec.tokenizer, ids, settings.stop),
            stats=DecodeStats(),
            trace=trace,
        )


def _tell_of_other_machine(artifact: Artifact) -> None:
    """Warns where the draft was tuned on another kind of processor: what pays there may not pay here."""
    tuning = artifact.manifest.tuning
    if tuning is not None and tuning.cpu != cpu_model():
        logger.warning(
            "%s was tuned on another kind of processor (%s, this is %s): the text is the same, the speed may not be the best;"
            " to tune it here: sstool search --artifact %s",
            artifact.folder.name,
            tuning.cpu,
            cpu_model(),
            artifact.folder,
        )


def _output(request: Request) -> OutputText:
    assert isinstance(request.text, OutputText)
    return request.text


def checked_threads(threads: int | None) -> int:
    """Returns how many threads an engine gets that is asked for these; None asks for the default.

    Raises:
        ConfigError: if the number is out of its range.
    """
    check_int("threads", threads, 1, MAX_THREADS)
    return default_threads() if threads is None else threads


def _check_stopping_rule(entry: DraftEntry) -> None:
    try:
        check_stopping_rule(entry.tuned, entry.mode)
    except ConfigError as err:
        raise ArtifactError(f"manifest.json: draft {entry.name!r}: {err.message}", "export the model again") from err
