"""Counts the rows of logits that differ, in at least one bit, from those of autoregressive decoding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ssruntime.backends.base import StepOutput
from ssruntime.results import logits_digest

_SAMPLED: Final = 512
"""Number of logits of each row that are kept, to tell the size of a difference."""


@dataclass(slots=True)
class KnownRow:
    """What is kept of a row of logits: its digest, and a sample of the logits."""

    digest: bytes
    sample: NDArray[np.float32]


@dataclass(slots=True)
class BitRows:
    """Comparisons of rows with known ones.

    Attributes:
        vocab_size: number of tokens in the vocabulary.
        compared: number of rows so far.
        differing: number of those that differ.
        largest: largest difference as a fraction of the row's largest logit.
        largest_absolute: largest difference.
        first: kind of pass of the first row that differs.
    """

    vocab_size: int
    compared: int = 0
    differing: int = 0
    largest: float = 0.0
    largest_absolute: float = 0.0
    first: str | None = None
    known: dict[int, KnownRow] = field(default_factory=dict)

    def keep(self, position: int, output: StepOutput, known: dict[int, KnownRow] | None = None) -> None:
        """Stores the rows of a pass that begins at `position`, in `known` or in this object."""
        rows = self.known if known is None else known
        for at, row in enumerate(output.logits, position):
            rows[at] = KnownRow(logits_digest(row), self._sample(row))

    def compare(
        self, kind: str, position: int, output: StepOutput, rows: Iterable[int], known: Mapping[int, KnownRow] | None = None
    ) -> None:
        """Compares rows of a pass with the stored ones at `position` and the positions after it."""
        for at, row in enumerate(rows, position):
            expected = (self.known if known is None else known)[at]
            self.compared += 1
            if logits_digest(output.logits[row]) != expected.digest:
                self.differing += 1
                self.first = self.first or kind
                apart = np.abs(self._sample(output.logits[row]) - expected.sample).max()
                scale = np.abs(output.logits[row]).max()
                self.largest_absolute = max(self.largest_absolute, float(apart))
                self.largest = max(self.largest, float(apart / scale) if scale > 0 else float(apart))

    def _sample(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        return row[:: -(-self.vocab_size // _SAMPLED)].copy()
