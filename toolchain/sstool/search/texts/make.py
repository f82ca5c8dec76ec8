"""Makes the calibration texts: the model's own continuations of prompts, on which candidates are scored."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ssruntime.backends.base import Slot
from ssruntime.engine import Engine
from ssruntime.errors import PromptError
from ssruntime.sampling.noise import prompt_seed
from sstool.prompts import PromptRecord
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.settings import SearchSettings

logger = logging.getLogger(__name__)

TAIL: Final = 8
"""Tokens after those that count; the draft of the last round is compared with them."""
_LEAST: Final = 8
"""Tokens that must fit into the context after a prompt for the prompt to be usable."""
_LEAST_TOKENS: Final = 2
"""Length of the shortest continuation that contains a round; its first token comes from prefill."""
_MOST_FINAL: Final = 64
"""Most prompts held out for the finalists, which are timed on text that nothing was tuned on.

Up to this limit, half of all prompts are held out, because fewer cannot separate finalists that are close
together."""
_FEW: Final = 12
"""With fewer prompts than this, none is held out and finalists are timed on all of them.

A handful cannot separate finalists, and sampling with other noise gives other text for the same prompts."""


@dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """One continuation of a prompt by the model itself.

    Attributes:
        kind: `sampled` or `greedy`.
        prompt_id: name of the prompt.
        seed: seed of the sampling noise, which is a function of seed, position and token.
        prompt: token ids of the prompt.
        tokens: token ids of the continuation, including the tail.
        length: number of leading `tokens` that count in scores.
    """

    kind: str
    prompt_id: str
    seed: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    length: int


@dataclass(frozen=True, slots=True)
class CachedText:
    """A text, and a slot whose KV cache the full model filled with it."""

    text: CalibrationText
    slot: Slot


def split_prompts(prompts: Sequence[PromptRecord]) -> tuple[list[PromptRecord], list[PromptRecord]]:
    """Returns the prompts to score candidates on, and the held-out ones; too few prompts serve as both."""
    if len(prompts) < _FEW:
        return list(prompts), list(prompts)
    every = max(2, math.ceil(len(prompts) / _MOST_FINAL))
    final = [p for n, p in enumerate(prompts) if n % every == every - 1]
    return [p for n, p in enumerate(prompts) if n % every != every - 1], final


def usable_prompts(engine: Engine, prompts: Sequence[PromptRecord]) -> list[PromptRecord]:
    """Returns the prompts that leave room for a continuation; logs a warning for each of the others.

    Raises:
        PromptError: if no prompt is usable.
    """
    usable = []
    for prompt in prompts:
        try:
            if len(engine.encode(prompt.prompt)) + _LEAST <= engine.backend.max_context:
                usable.append(prompt)
                continue
            reason = f"it leaves fewer than {_LEAST} of the context's {engine.backend.max_context} positions free"
        except PromptError as err:
            reason = err.message
        logger.warning("calibration prompt %s is left out: %s", prompt.id, reason)
    if not usable:
        raise PromptError(
            f"none of the {len(prompts)} calibration prompts can be used", "give prompts that are not empty and leave room in the context"
        )
    return usable


def make_texts(
    builder: DraftBuilder, prompts: Sequence[PromptRecord], settings: SearchSettings, on_text: Callable[[int, int], None]
) -> list[CachedText]:
    """Returns autoregressive continuations (mode `plain`) of prompts: each sampled, every third also greedy.

    The kinds alternate, so that every leading part of the list holds both. Only the kinds with a weight are
    made.

    Args:
        builder: owner of the engine that decodes.
        prompts: usable prompts.
        settings: settings of the search, which fix the sampling and the lengths.
        on_text: called before each text with the number of texts done and their number in all.

    Raises:
        PromptError: if the model ends every continuation at its first token, so that there is nothing to
            draft.
    """
    wanted = [(kind, p) for n, p in enumerate(prompts) for kind in settings.kinds_of(n)]
    texts: list[CachedText] = []
    for number, (kind, prompt) in enumerate(wanted):
        on_text(number, len(wanted))
        made = _continue(builder, prompt, kind, settings)
        if made.text.length >= _LEAST_TOKENS:
            texts.append(made)
    if not texts:
        raise PromptError(
            f"the model ends its continuation of each of the {len(prompts)} calibration prompts at the first token",
            "give prompts that the model continues",
        )
    return texts


def cache_texts(builder: DraftBuilder, texts: Sequence[CalibrationText]) -> list[CachedText]:
    """Returns texts that were made earlier, each with a KV cache that is filled now."""
    return [CachedText(text, builder.filled_slot((*text.prompt, *text.tokens))) for text in texts]


def calibration_digest(texts: Sequence[CalibrationText], final: Sequence[PromptRecord]) -> str:
    """Returns the SHA-256 digest of the texts with all their fields, and of the held-out prompts."""
    parts = [[dataclasses.asdict(item) for item in items] for items in (texts, final)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _continue(builder: DraftBuilder, prompt: PromptRecord, kind: str, settings: SearchSettings) -> CachedText:
    """Returns the model's continuation of one prompt; it is shorter than planned if the model ends it."""
    engine = builder.engine
    ids = engine.encode(prompt.prompt)
    wanted = settings.tokens_of(kind)
    seed = prompt_seed(settings.seed, prompt.index)
    complete = dataclasses.replace(engine.settings(settings.decoding(kind, seed)), max_new_tokens=wanted + TAIL)
    # Each text has its own slot. After decoding, its KV cache holds all tokens of the text but the last.
    slot = builder.backend.new_slot(len(ids) + wanted + TAIL)
    tokens, _ = engine.decode_on(slot, ids, complete)
    text = CalibrationText(
        kind=kind, prompt_id=prompt.id, seed=seed, prompt=tuple(ids), tokens=tuple(tokens), length=min(wanted, len(tokens))
    )
    return CachedText(text, slot)
