"""Counter-based noise: a pure function of (seed, absolute position, token), so that any two runs share it.

Coupled sampling takes the token with the largest `log(weight) + gumbel`, in the draft and in the target with
the same noise. Whatever the draft, its length or the stopping policy, the tokens are then those of
autoregressive sampling (drafter-invariant coupling: Daliri, Musco & Suresh, arXiv 2408.07978). A golden test
freezes the definition below, because any change to it changes the text of every seed.

The generator is Philox4x64-10 (Salmon et al., SC 2011; numpy's `Philox`) with key `(seed, 0x5353544F4F4C)`
and counter `(token // 4 + 1, position, 0, 0)`. Word `token % 4` of that block, w, gives
`u = (w + 1/2) / 2**64` and the noise `-log(-log(u))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_KEY_DOMAIN: Final = 0x5353544F4F4C
_BLOCK: Final = 4096
"""Number of tokens whose words are drawn together: one word costs about as much as this many."""
_LOOKAHEAD: Final = 16
"""Number of positions whose first blocks are drawn together.

The first draw after an engine pass is slower than the next ones, because the pass evicts this code from the
CPU caches."""
_LOOKBACK: Final = 32
"""Number of past positions whose words are kept: more than a round spans, so verify reuses the draft's."""


class CoupledNoise:
    """Noise of one request. Words are drawn on demand, in blocks of tokens, and kept for recent positions."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed, _KEY_DOMAIN], dtype=np.uint64))
        self._state: Any = self._bits.state
        self._blocks: dict[tuple[int, int], memoryview] = {}

    def uniforms(self, position: int, tokens: Sequence[int]) -> list[float]:
        """Returns u in (0, 1) for a few tokens, without numpy; see `log_uniform`."""
        first = self._block(position, 0)
        words = [first[t] if t < _BLOCK else self._block(position, t // _BLOCK)[t % _BLOCK] for t in tokens]
        return [(word + 0.5) * 2.0**-64 for word in words]

    def log_uniform(self, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns log(u) float64[n], below 0, for tokens `ids: int64[n]` at an absolute position.

        The token with the largest `log(weight) + gumbel` also has the largest `log(u) / weight`, which takes
        half the operations.
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
        # numpy increments the counter before it draws, hence the "+ 1" in the definition above.
        self._state["state"]["counter"][:] = (number * (_BLOCK // 4), position, 0, 0)
        self._state["buffer_pos"] = 4
        self._bits.state = self._state
        words: NDArray[np.uint64] = self._bits.random_raw(_BLOCK)
        return words.data

    def _forget(self, position: int) -> None:
        """Drops the blocks of positions too far back to be needed again."""
        oldest = next(iter(self._blocks))
        while oldest[0] < position - _LOOKBACK:
            del self._blocks[oldest]
            oldest = next(iter(self._blocks))


def gumbel(seed: int, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the noise float64[n] of one seed for tokens `ids: int64[n]` at an absolute position."""
    noise: NDArray[np.float64] = -np.log(-CoupledNoise(seed).log_uniform(position, ids))
    return noise


def prompt_seed(seed: int, index: int) -> int:
    """Returns the seed of prompt `index` (0-based) in a file of prompts that is run with `seed`.

    Prompt 0 uses `seed` itself, so that a single prompt and a file with one prompt give the same text. The
    others use 63 bits of numpy's `SeedSequence(seed, spawn_key=(index,))`. A golden test freezes this
    definition.
    """
    if index == 0:
        return seed
    state = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
