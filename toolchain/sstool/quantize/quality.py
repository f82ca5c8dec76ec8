"""Compares the predictions of two engines on text: KL divergence, agreement and perplexity."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssruntime.backends.base import Backend, Slot

Logits = Callable[[Sequence[int]], NDArray[np.float32]]
"""Returns the logits float32[len(ids), vocab] of a text."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How a model's predictions compare with those of a reference.

    Attributes:
        mean_kl: mean over all positions of the KL divergence from the reference, in nats.
        max_kl: largest one.
        top1_agreement: fraction of positions with the same most probable token.
        perplexity: perplexity of the text.
        reference_perplexity: that of the reference.
        positions: number of compared positions.
    """

    mean_kl: float
    max_kl: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float
    positions: int

    def to_json(self) -> dict[str, float | int]:
        """Returns the figures."""
        return dataclasses.asdict(self)


def compare_quality(reference: Logits, ours: Logits, texts: Sequence[Sequence[int]]) -> Quality:
    """Returns the comparison over texts; logits of one text at a time are in memory."""
    divergences, agreements, losses = [], [], []
    for ids in texts:
        expected, found = _log_softmax(reference(ids)), _log_softmax(ours(ids))
        divergences.append((np.exp(expected) * (expected - found)).sum(axis=-1))
        agreements.append(expected.argmax(axis=-1) == found.argmax(axis=-1))
        after = np.arange(len(ids) - 1), np.asarray(ids[1:], dtype=np.int64)
        losses.append((expected[after], found[after]))
    kl = np.concatenate(divergences)
    # NaN counts as an infinite divergence, so that the report still holds numbers.
    kl = np.where(np.isnan(kl), np.inf, kl)
    theirs, own = (float(np.exp(-np.concatenate([loss[side] for loss in losses]).mean())) for side in (0, 1))
    return Quality(
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        top1_agreement=float(np.concatenate(agreements).mean()),
        perplexity=own,
        reference_perplexity=theirs,
        positions=len(kl),
    )


@contextlib.contextmanager
def engine_logits(backend: Backend) -> Iterator[Logits]:
    """Yields the function that computes logits with a backend's verify engine, on a slot of its pool."""
    slot = backend.acquire(None)
    try:
        yield logits_of(slot)
    finally:
        backend.release(slot)


def logits_of(slot: Slot, *, draft: bool = False) -> Logits:
    """Returns the function that computes logits with a slot's verify engine, or its draft engine."""
    forward = slot.draft_forward if draft else slot.forward
    return lambda ids: forward(ids, 0, range(len(ids))).logits.copy()


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    total: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return total
