"""Coupled sampling: draft and target pick `argmax(score + noise)` with the same noise, and a draft token stands if they agree.

By the Gumbel-max trick each pick has exactly the filtered distribution. As the noise depends on nothing but seed, position and
token, the text is that of plain sampling with the same seed, whatever is drafted (Daliri, Musco & Suresh, arXiv 2408.07978).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ssruntime.acceptance.equality import accept_equal
from ssruntime.backends.base import StepOutput
from ssruntime.config import DecodeSettings
from ssruntime.sampling.filters import FilterSettings, certain_from, filtered
from ssruntime.sampling.noise import CoupledNoise


class CoupledAcceptance:
    """Samples with noise shared between draft and target; one request's."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._noise = CoupledNoise(settings.seed)
        self._certain_from = certain_from(settings)

    def first(self, output: StepOutput, position: int) -> int:
        """Returns the target's pick for the first row."""
        return self._pick(output, 0, position)

    def propose(self, output: StepOutput, position: int) -> int:
        """Returns the draft's pick, with the noise that the target will see."""
        return self._pick(output, 0, position)

    def judge(self, output: StepOutput, proposals: Sequence[int], position: int) -> list[int]:
        """Returns the proposals that equal the target's pick, then the target's next one."""
        return accept_equal(proposals, lambda row: self._pick(output, row, position + row))

    def _pick(self, output: StepOutput, row: int, position: int) -> int:
        if output.confidence[row] >= self._certain_from:
            return int(output.tokens[row])
        return coupled_pick(output.logits[row], position, self._settings, self._noise)


def coupled_pick(logits: NDArray[np.float32], position: int, settings: FilterSettings, noise: CoupledNoise) -> int:
    """Returns the token that coupled sampling takes from a row of logits float32[vocab], which decides an absolute position."""
    ids, weights = filtered(logits, settings)
    if len(ids) == 1:
        return int(ids[0])
    return int(ids[(noise.log_uniform(position, ids) / weights).argmax()])
