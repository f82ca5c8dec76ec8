"""The texts of a quantization: one half to choose scales and factors on, the other to judge the result on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

from ssruntime.artifact import Artifact
from ssruntime.errors import PromptError
from ssruntime.text.codec import PromptCodec
from sstool.prompts import PromptRecord

logger = logging.getLogger(__name__)

MAX_LENGTH: Final = 256
"""Tokens of a text that are used."""
_SHORTEST: Final = 2
_LEAST_TOKENS: Final = 512
"""Tokens of both halves together; fewer show too few of the activations that the model has."""


class Texts(NamedTuple):
    """Token ids of the texts of each half."""

    calibration: list[list[int]]
    held_out: list[list[int]]


def read_texts(artifact: Artifact, prompts: Sequence[PromptRecord]) -> Texts:
    """Returns the texts of prompts, every other one held out; logs a warning for each that cannot be encoded.

    Args:
        artifact: artifact whose tokenizer is used; texts are cut at its context.
        prompts: the prompts.

    Raises:
        PromptError: if all of them together are too short.
    """
    codec = PromptCodec(artifact.folder, artifact.manifest.model.vocab_size)
    length = text_length(artifact)
    found = []
    for prompt in prompts:
        try:
            ids = codec.encode(prompt.prompt)[:length]
        except PromptError as err:
            logger.warning("calibration prompt %s is left out: %s", prompt.id, err.message)
            continue
        if len(ids) >= _SHORTEST:
            found.append(ids)
    texts, total = Texts(found[::2], found[1::2]), sum(len(ids) for ids in found)
    if total < _LEAST_TOKENS or not texts.held_out:
        raise PromptError(
            f"the calibration text is too short: {total} tokens in {len(found)} prompts, and {_LEAST_TOKENS} in at least 2 are needed",
            "give more prompts with --calibration",
        )
    return texts


def text_length(artifact: Artifact) -> int:
    """Returns the number of tokens at which an artifact's texts are cut."""
    return min(MAX_LENGTH, artifact.manifest.max_context)
