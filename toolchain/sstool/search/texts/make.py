"""Calibration texts: the model's own continuations of prompts, on which every candidate is judged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ssruntime.backends.ort.slot import OrtSlot
from ssruntime.engine import Engine
from ssruntime.errors import PromptError
from ssruntime.sampling.noise import prompt_seed
from sstool.prompts import PromptRecord
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.settings import GREEDY, GREEDY_EVERY, SearchSettings

logger = logging.getLogger(__name__)

TAIL: Final = 8
"""Tokens past the ones that count, so that the draft of the last round has something to agree with."""
_LEAST: Final = 8
"""Tokens that must fit behind a prompt for it to be of use."""
_LEAST_TOKENS: Final = 2
"""Tokens of a continuation that has a round: the first is prefill's."""
_MOST_FINAL: Final = 64
"""Prompts kept at most for the finalists, who must win on text that nothing was tuned on. Else it is half: the finalists lie so close
together that with a quarter of 32 prompts the winner was as often one of the slower ones."""
_FEW: Final = 12
"""Prompts of which none is kept: a handful tells no finalist from another, and sampled with other noise all give other text."""


@dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """One continuation.

    Attributes:
        kind: `sampled` or `greedy`.
        prompt_id: the prompt's name.
        seed: of the noise, which is a function of this, the position and the token.
        prompt: its token ids.
        tokens: the continuation's, the tail included.
        length: of these, the tokens that count.
    """

    kind: str
    prompt_id: str
    seed: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    length: int


@dataclass(frozen=True, slots=True)
class CachedText:
    """A text, and a slot whose cache holds the full model's keys and values of it."""

    text: CalibrationText
    slot: OrtSlot


def split_prompts(prompts: Sequence[PromptRecord]) -> tuple[list[PromptRecord], list[PromptRecord]]:
    """Returns the prompts to search with and the ones to time finalists with; all for both where half would be too few."""
    if len(prompts) < _FEW:
        return list(prompts), list(prompts)
    every = max(2, math.ceil(len(prompts) / _MOST_FINAL))
    final = [p for n, p in enumerate(prompts) if n % every == every - 1]
    return [p for n, p in enumerate(prompts) if n % every != every - 1], final


def usable_prompts(engine: Engine, prompts: Sequence[PromptRecord]) -> list[PromptRecord]:
    """Returns the prompts that leave room for a continuation; warns of the others.

    Raises:
        PromptError: if there is none.
    """
    usable = []
    for prompt in prompts:
        try:
            if len(engine.encode(prompt.prompt)) + _LEAST <= engine.backend.max_context:
                usable.append(prompt)
                continue
            reason = f"it leaves fewer than {_LEAST} of {engine.backend.max_context} positions"
        except PromptError as err:
            reason = err.message
        logger.warning("calibration prompt %s is left out: %s", prompt.id, reason)
    if not usable:
        raise PromptError(f"none of the {len(prompts)} calibration prompts can be used", "give some that are not empty and fit the context")
    return usable


def make_texts(
    builder: DraftBuilder, prompts: Sequence[PromptRecord], settings: SearchSettings, on_text: Callable[[int, int], None]
) -> list[CachedText]:
    """Continues prompts, plainly: each sampled, and every third greedily too; the kinds are mixed, so that any first part has both.

    Args:
        builder: whose engine continues them.
        prompts: usable ones.
        settings: how to sample, and how long.
        on_text: told how many are done, of how many.

    Raises:
        PromptError: if the model ends every continuation at its first token, where there is nothing to draft.
    """
    kinds = settings.kinds
    wanted = [(kind, p) for n, p in enumerate(prompts) for kind in kinds if n % GREEDY_EVERY == 0 or kind != GREEDY or len(kinds) == 1]
    texts: list[CachedText] = []
    for number, (kind, prompt) in enumerate(wanted):
        on_text(number, len(wanted))
        made = _continue(builder, prompt, kind, settings)
        if made.text.length >= _LEAST_TOKENS:
            texts.append(made)
    if not texts:
        raise PromptError(f"the model ends its answer to each of the {len(prompts)} calibration prompts at once", "give others")
    return texts


def cache_texts(builder: DraftBuilder, texts: Sequence[CalibrationText]) -> list[CachedText]:
    """Gives texts that were made earlier their caches."""
    return [CachedText(text, builder.filled_slot((*text.prompt, *text.tokens))) for text in texts]


def calibration_digest(texts: Sequence[CalibrationText], final: Sequence[PromptRecord]) -> str:
    """Returns a digest of everything about the texts, and of the prompts for the finalists."""
    parts = [[dataclasses.asdict(item) for item in items] for items in (texts, final)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _continue(builder: DraftBuilder, prompt: PromptRecord, kind: str, settings: SearchSettings) -> CachedText:
    engine = builder.engine
    ids = engine.encode(prompt.prompt)
    wanted = settings.tokens_of(kind)
    seed = prompt_seed(settings.seed, prompt.index)
    complete = dataclasses.replace(engine.settings(settings.decoding(kind, seed)), max_new_tokens=wanted + TAIL)
    # The slot is the text's own, and holds the cache of all but its last token when it has been decoded.
    slot = builder.backend.new_slot(len(ids) + wanted + TAIL)
    tokens, _ = engine.decode_on(slot, ids, complete)
    text = CalibrationText(
        kind=kind, prompt_id=prompt.id, seed=seed, prompt=tuple(ids), tokens=tuple(tokens), length=min(wanted, len(tokens))
    )
    return CachedText(text, slot)
