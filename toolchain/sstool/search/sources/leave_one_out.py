"""Leave-one-out influence: how much of what the model expects next survives the loss of one sublayer, and the skip sets of that order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.backends.base import StepOutput
from ssruntime.graph_io import MAX_QUERY_LENGTH
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import Bits, is_draft, skip_of
from sstool.search.log.records import Sensitivity
from sstool.search.texts.make import CachedText, CalibrationText

CUTS: Final = (0.4, 0.55, 0.7, 0.8)
"""Parts of the sublayers, least missed first, that are tried as skip sets."""
_TOKENS: Final = 112
"""Tokens that the overlap is measured on."""


def measure_sensitivity(builder: DraftBuilder, texts: Sequence[CachedText], on_sublayer: Callable[[int, int], None]) -> Sensitivity:
    """Runs a draft without each sublayer over some text, and compares what it expects next with what the model does.

    A draft pass of many positions gives the first tokens of as many drafts, but for what it attends to: of the positions in the
    same pass it sees its own keys and values, as a long draft would. That tells sublayers apart as well at a fraction of the cost.
    And the overlap of the two distributions, which is the chance that picks coupled as well as can be agree, tells them apart on
    far less text than counting picks that do.

    Args:
        builder: builds the drafts.
        texts: the model's own; the first of them are used.
        on_sublayer: told how many are done, of how many.
    """
    begun = time.perf_counter()
    chosen = _first_tokens(texts)
    own = [[_probabilities(cached.slot.forward(*span)) for span in _spans(cached.text)] for cached in chosen]
    total = 2 * builder.num_layers
    agreement = []
    for place in range(total):
        on_sublayer(place, total)
        draft = builder.open(skip_of([int(n == place) for n in range(total)]))
        overlaps: list[float] = []
        for cached, expected in zip(chosen, own, strict=True):
            cached.slot.use_draft(draft)
            for (given, start, positions), target in zip(_spans(cached.text), expected, strict=True):
                with cached.slot.preserved(start, start + len(given)):
                    drafted = _probabilities(cached.slot.draft_forward(given, start, positions))
                overlaps += [float(v) for v in np.minimum(target, drafted).sum(axis=1)]
        agreement.append(float(np.mean(overlaps)))
    return Sensitivity(
        attention=tuple(agreement[: builder.num_layers]),
        mlp=tuple(agreement[builder.num_layers :]),
        seconds=time.perf_counter() - begun,
    )


def sensitivity_order(sensitivity: Sensitivity) -> list[int]:
    """Returns the places of all sublayers, the least missed first."""
    return [int(n) for n in np.argsort(-np.array([*sensitivity.attention, *sensitivity.mlp]), kind="stable")]


def cut(order: Sequence[int], part: float) -> Bits:
    """Returns the set of the first `part` of an order of sublayers."""
    chosen = set(order[: max(1, min(len(order) - 1, round(part * len(order))))])
    return tuple(int(n in chosen) for n in range(len(order)))


def cuts(order: Sequence[int]) -> list[Bits]:
    """Returns the first cuts that are tried."""
    return [b for b in dict.fromkeys(cut(order, part) for part in CUTS) if is_draft(b)]


def _first_tokens(texts: Sequence[CachedText]) -> list[CachedText]:
    chosen, tokens = [], 0
    for cached in texts:
        if tokens >= _TOKENS:
            break
        chosen.append(cached)
        tokens += cached.text.length
    return chosen


def _spans(text: CalibrationText) -> list[tuple[tuple[int, ...], int, range]]:
    """Returns the passes over a continuation: tokens, where the first of them stands, and which of them are looked at."""
    spans = []
    for first in range(0, text.length, MAX_QUERY_LENGTH):
        given = text.tokens[first : min(first + MAX_QUERY_LENGTH, text.length)]
        spans.append((given, len(text.prompt) + first, range(len(given))))
    return spans


def _probabilities(output: StepOutput) -> NDArray[np.float32]:
    """Returns float32[N, vocab]."""
    weights: NDArray[np.float32] = np.exp(output.logits - output.logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights
