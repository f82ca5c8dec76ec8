"""Preparation of requests: prompt and settings are checked and completed, without an open engine."""

from __future__ import annotations

import dataclasses
import logging
from typing import Final, NamedTuple

from ssruntime.artifact import GENERATION_CONFIG, Artifact, DraftEntry, Manifest
from ssruntime.checks import check_int
from ssruntime.config import DecodeSettings, GenerationConfig, complete, read_generation_config
from ssruntime.errors import ConfigError, ContextOverflowError
from ssruntime.text.codec import PromptCodec, as_chat
from ssruntime.text.prompt import Prompt

logger = logging.getLogger(__name__)

DEFAULT_MAX_CONTEXT: Final = 4096
"""Most tokens of a sequence unless `max_context` is given: the memory of a KV cache grows with it."""


class Request(NamedTuple):
    """A checked request.

    Attributes:
        ids: token ids of the prompt.
        settings: completed settings.
        prefix_namespace: requests share beginnings only with requests of the same namespace.
    """

    ids: tuple[int, ...]
    settings: DecodeSettings
    prefix_namespace: str = ""


class Preparer:
    """Checks and completes the requests for one artifact. Safe to use from several threads.

    Attributes:
        artifact: the artifact.
        draft: the open draft; None if none is open.
        codec: its tokenizer and chat template.
        max_context: most tokens of a sequence.
    """

    def __init__(self, artifact: Artifact, draft: DraftEntry | None, max_context: int) -> None:
        """Reads the tokenizer, the chat template and the checkpoint's generation settings.

        Args:
            artifact: the artifact.
            draft: the open draft; None if none is open.
            max_context: most tokens of a sequence.

        Raises:
            ArtifactError: if a file is missing or damaged.
        """
        self.artifact = artifact
        self.draft = draft
        self.max_context = max_context
        self._defaults = read_generation_config(artifact.path(GENERATION_CONFIG))
        if ignored := self._defaults.ignored:
            logger.warning("%s has settings that cannot be followed; they are ignored: %s", GENERATION_CONFIG, ", ".join(ignored))
        self.codec = PromptCodec(artifact.folder, artifact.manifest.model.vocab_size)

    def prepare(self, prompt: Prompt | Request, config: GenerationConfig | None = None, *, prefix_namespace: str = "") -> Request:
        """Returns a checked request; see `Engine.prepare`."""
        if isinstance(prompt, Request):
            if config is not None or prefix_namespace:
                raise ConfigError("a prepared request has its settings already", "give the settings to prepare")
            return prompt
        if not isinstance(prefix_namespace, str):
            raise ConfigError(f"prefix_namespace must be a text, found {prefix_namespace!r}", "give a name, or leave it out")
        settings, ids = self.settings(config), self.encode(prompt)
        if as_chat(prompt) is not None and not (config is not None and config.ignore_eos):
            settings = dataclasses.replace(settings, eos_token_ids=settings.eos_token_ids | self.codec.turn_end)
        return Request(tuple(ids), settings, prefix_namespace)

    def settings(self, config: GenerationConfig | None = None) -> DecodeSettings:
        """Returns a completed configuration; see `Engine.settings`."""
        manifest = self.artifact.manifest
        settings = complete(config or GenerationConfig(), self._defaults, self.draft, manifest.branch_margin)
        vocab_size = manifest.model.vocab_size
        for token in settings.stop_token_ids:
            if token >= vocab_size:
                raise ConfigError(f"stop_token_ids: {token} is not a token id of this model", f"token ids are 0 to {vocab_size - 1}")
        if settings.min_new_tokens and len(settings.stop_token_ids | settings.eos_token_ids) >= vocab_size:
            raise ConfigError("min_new_tokens cannot be reached: every token ends the text", "leave stop_token_ids out")
        return settings

    def encode(self, prompt: Prompt) -> list[int]:
        """Returns the prompt's token ids; see `Engine.encode`."""
        now, most = self.max_context, self.artifact.manifest.max_context
        try:
            return self.codec.encode(prompt, context=now)
        except ContextOverflowError as err:
            larger = f"shorten the prompt, or load with a larger max_context (at most {most} here)"
            hint = larger if now < most else f"shorten the prompt: {most} is the artifact's max_context"
            raise ContextOverflowError(err.message, hint) from None


def context_limit(manifest: Manifest, given: int | None = None) -> int:
    """Returns the most tokens of a sequence: the given number, else the artifact's limit, at most 4096.

    Raises:
        ConfigError: if the number is out of range.
    """
    check_int("max_context", given, 1, manifest.max_context)
    return min(manifest.max_context, DEFAULT_MAX_CONTEXT) if given is None else given
