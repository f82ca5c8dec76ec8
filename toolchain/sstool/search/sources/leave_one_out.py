"""Leave-one-out sensitivity of each sublayer, and the skip sets that skip the least sensitive ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.backends.base import StepOutput
from ssruntime.graph_io import MAX_QUERY_LENGTH
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import Bits, skip_of
from sstool.search.log.records import Sensitivity
from sstool.search.texts.make import CachedText, CalibrationText

CUTS: Final = (0.4, 0.55, 0.7, 0.8)
"""Shares of the sublayers that are tried as skip sets, in order of sensitivity, the least sensitive first."""
LIGHT_CUTS: Final = (0.1, 0.2, 0.3)
"""More shares for drafts with own weights, for which a sublayer that is kept costs little."""
_TOKENS: Final = 112
"""Tokens to measure the overlap on; the last text is used as a whole."""


def measure_sensitivity(builder: DraftBuilder, texts: Sequence[CachedText], on_sublayer: Callable[[int, int], None]) -> Sensitivity:
    """Returns, for each sublayer, the overlap of the next-token distributions with and without that sublayer.

    Two approximations make this cheap. One draft pass over many positions replaces a one-token draft at each
    position; within the pass, tokens attend to the draft's own KV, as in a long draft sequence. And the
    overlap of the two distributions is used, which is the highest probability with which coupled samples from
    them can agree. It ranks sublayers on far less text than a count of agreeing samples would need.

    Args:
        builder: builder of the drafts.
        texts: calibration texts, of which the first ones are used.
        on_sublayer: called before each sublayer with the number of sublayers done and their number in all.
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
    """Returns the indices of all sublayers in `space.Bits`, the least sensitive first."""
    return [int(n) for n in np.argsort(-np.array([*sensitivity.attention, *sensitivity.mlp]), kind="stable")]


def cut(order: Sequence[int], part: float) -> Bits:
    """Returns the set that skips the first `part`, 0 to 1, of ordered sublayers, but never none or all."""
    chosen = set(order[: max(1, min(len(order) - 1, round(part * len(order))))])
    return tuple(int(n in chosen) for n in range(len(order)))


def cuts(order: Sequence[int], shares: Sequence[float] = CUTS) -> list[Bits]:
    """Returns the skip sets that skip these shares of the sublayers, without duplicates."""
    return list(dict.fromkeys(cut(order, share) for share in shares))


def _first_tokens(texts: Sequence[CachedText]) -> list[CachedText]:
    """Returns the first texts, as many as it takes to have `_TOKENS` tokens."""
    chosen, tokens = [], 0
    for cached in texts:
        if tokens >= _TOKENS:
            break
        chosen.append(cached)
        tokens += cached.text.length
    return chosen


def _spans(text: CalibrationText) -> list[tuple[tuple[int, ...], int, range]]:
    """Returns the passes over a continuation: token ids, first position, and rows whose logits are needed."""
    spans = []
    for first in range(0, text.length, MAX_QUERY_LENGTH):
        given = text.tokens[first : min(first + MAX_QUERY_LENGTH, text.length)]
        spans.append((given, len(text.prompt) + first, range(len(given))))
    return spans


def _probabilities(output: StepOutput) -> NDArray[np.float32]:
    """Returns the next-token probabilities of each row, float32[N, vocab]."""
    weights: NDArray[np.float32] = np.exp(output.logits - output.logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights
