"""Counter-based noise: a pure function of (seed, absolute position, token), so that any two runs share it.

Coupled sampling takes the token of the largest `log(weight) + gumbel` in the draft and in the target with the same noise; whatever the
draft, its length or the exit policy, the tokens are then those of plain sampling (drafter-invariant coupling: Daliri, Musco & Suresh,
arXiv 2408.07978). The definition below is frozen by a golden test: changing it changes everybody's text for a given seed.

The generator is Philox4x64-10 (Salmon et al., SC 2011; numpy's `Philox`) with key `(seed, 0x5353544F4F4C)` and counter
`(token // 4 + 1, position, 0, 0)`; word `token % 4` of that block, w, gives `u = (w + 1/2) / 2**64` and the noise `-log(-log(u))`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_KEY_DOMAIN: Final = 0x5353544F4F4C
_BLOCK: Final = 4096
"""Tokens whose words are drawn together: drawing one costs about as much as drawing this many."""
_LOOKAHEAD: Final = 8
"""Positions whose first block is drawn together: the first draw after a pass of an engine, which leaves nothing of this code in the
processor's caches, costs three times as much as the ones right after it."""
_LOOKBACK: Final = 32
"""Positions for which words are kept: more than one round spans, so that verify finds what its draft drew."""


class CoupledNoise:
    """Noise of one request. Words are drawn in blocks of tokens as candidates ask for them, and kept for recent positions."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed, _KEY_DOMAIN], dtype=np.uint64))
        self._state: Any = self._bits.state
        self._blocks: dict[tuple[int, int], memoryview] = {}

    def log_uniforms(self, position: int, tokens: Sequence[int]) -> list[float]:
        """As `log_uniform`, for a few tokens, without numpy."""
        first = self._block(position, 0)
        words = [first[t] if t < _BLOCK else self._block(position, t // _BLOCK)[t % _BLOCK] for t in tokens]
        return [math.log((word + 0.5) * 2.0**-64) for word in words]

    def log_uniform(self, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns log(u) float64[n], below 0, of tokens `ids: int64[n]` at an absolute position of the sequence.

        The token of the largest `log(weight) + gumbel` is that of the largest `log(u) / weight`, which takes half the operations.
        """
        uniform = np.add(self._words(position, ids), 0.5, dtype=np.float64)
        uniform *= 2.0**-64
        return np.log(uniform, out=uniform)

    def _words(self, position: int, ids: NDArray[np.int64]) -> NDArray[np.uint64]:
        if int(np.maximum.reduce(ids)) < _BLOCK:
            return np.asarray(self._block(position, 0))[ids]
        numbers = ids // _BLOCK
        words = np.empty(len(ids), dtype=np.uint64)
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            words[chosen] = np.asarray(self._block(position, number))[ids[chosen] - number * _BLOCK]
        return words

    def _block(self, position: int, number: int) -> memoryview:
        words = self._blocks.get((position, number))
        if words is None:
            for ahead in range(position, position + (1 if number else _LOOKAHEAD)):
                if (ahead, number) not in self._blocks:
                    self._blocks[ahead, number] = self._draw(ahead, number)
            words = self._blocks[position, number]
            self._forget(position)
        return words

    def _draw(self, position: int, number: int) -> memoryview:
        # numpy steps the counter before it draws, hence the "+ 1" in the definition above.
        self._state["state"]["counter"][:] = (number * (_BLOCK // 4), position, 0, 0)
        self._state["buffer_pos"] = 4
        self._bits.state = self._state
        words: NDArray[np.uint64] = self._bits.random_raw(_BLOCK)
        return words.data

    def _forget(self, position: int) -> None:
        """Drops blocks of positions that lie too far back to be asked for again."""
        oldest = next(iter(self._blocks))
        while oldest[0] < position - _LOOKBACK:
            del self._blocks[oldest]
            oldest = next(iter(self._blocks))


def gumbel(seed: int, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the noise float64[n] of tokens `ids: int64[n]` at an absolute position, for one seed."""
    noise: NDArray[np.float64] = -np.log(-CoupledNoise(seed).log_uniform(position, ids))
    return noise


def prompt_seed(seed: int, index: int) -> int:
    """Returns the seed of prompt `index` (0-based) of a file that is run with `seed`.

    The first prompt has the seed itself, so that a single prompt and a file of one agree. Others have 63 bits of numpy's
    `SeedSequence(seed, spawn_key=(index,))`. Frozen by a golden test.
    """
    if index == 0:
        return seed
    state = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
