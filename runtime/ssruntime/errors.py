"""Every error a user can cause is a `SelfSpecError`: what was found, and a hint that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SelfSpecError(Exception):
    """An error whose cause lies with the input, the files or the machine, not with this program.

    Attributes:
        message: what was expected, what was found and where, in one line.
        hint: what to do about it, in one line.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ArtifactError(SelfSpecError):
    """An exported artifact is missing, damaged or of another schema."""


class CheckpointError(SelfSpecError):
    """A model folder or hub id cannot be read as a Hugging Face decoder checkpoint."""


class UnsupportedModelError(SelfSpecError):
    """The checkpoint is sound, but sstool cannot export it correctly."""


class RecipeError(SelfSpecError):
    """A recipe or a skip set contains something that cannot be used."""


class ConfigError(SelfSpecError):
    """A decoding setting is unknown or out of its range."""


class PromptError(SelfSpecError):
    """A prompt, or a file of prompts, cannot be used."""


class ContextOverflowError(PromptError):
    """A prompt leaves no room for a new token within the context."""


class BackendUnavailableError(SelfSpecError):
    """The machine lacks something that an engine needs, or no sequence of an engine came free in time."""


class QueueFullError(BackendUnavailableError):
    """Too many requests wait for a free sequence already."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns a hint that names the entry of `known` closest to `name`, or all of them if none is close."""
    choices = sorted(known)
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(choices)}"
