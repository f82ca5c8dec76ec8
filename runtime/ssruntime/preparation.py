"""Preparation of requests: prompt and settings are checked and completed, without an open engine."""

from __future__ import annotations

import dataclasses
from collections import abc
from typing import NamedTuple

from ssruntime.artifact import Artifact, DraftEntry
from ssruntime.config import CheckpointDefaults, DecodeSettings, GenerationConfig, complete
from ssruntime.errors import ConfigError, ContextOverflowError
from ssruntime.text.codec import PromptCodec, as_chat
from ssruntime.text.prompt import Prompt


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
        codec: its tokenizer and chat template.
        max_context: most tokens of a sequence.
    """

    def __init__(
        self, artifact: Artifact, codec: PromptCodec, defaults: CheckpointDefaults, draft: DraftEntry | None, max_context: int
    ) -> None:
        """Takes what requests are checked against.

        Args:
            artifact: the artifact.
            codec: its tokenizer and chat template.
            defaults: generation settings of the checkpoint.
            draft: the open draft; None if none is open.
            max_context: most tokens of a sequence.
        """
        self.artifact = artifact
        self.codec = codec
        self.max_context = max_context
        self._defaults = defaults
        self._draft = draft

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
        settings = complete(config or GenerationConfig(), self._defaults, self._draft, manifest.branch_margin)
        vocab_size = manifest.model.vocab_size
        for token in settings.stop_token_ids:
            if token >= vocab_size:
                raise ConfigError(f"stop_token_ids: {token} is not a token id of this model", f"token ids are 0 to {vocab_size - 1}")
        if settings.min_new_tokens and len(settings.stop_token_ids | settings.eos_token_ids) >= vocab_size:
            raise ConfigError("min_new_tokens cannot be reached: every token ends the text", "leave stop_token_ids out")
        return settings

    def encode(self, prompt: Prompt) -> list[int]:
        """Returns the prompt's token ids; see `Engine.encode`."""
        ids = self.codec.encode(prompt)
        self.check_length(ids)
        return ids

    def check_length(self, ids: abc.Sequence[int]) -> None:
        """Checks that a prompt leaves room for a generated token.

        Raises:
            ContextOverflowError: if it does not.
        """
        now, most = self.max_context, self.artifact.manifest.max_context
        if len(ids) >= now:
            larger = f"shorten the prompt, or load with a larger max_context (at most {most} here)"
            raise ContextOverflowError(
                f"the prompt has {len(ids)} tokens, and the context of {now} tokens must hold at least one more",
                larger if now < most else f"shorten the prompt: {most} is the artifact's max_context",
            )
