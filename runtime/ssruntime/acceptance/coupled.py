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
from ssruntime.sampling.shortlist import Shortlist


class CoupledAcceptance:
    """Samples with noise shared between draft and target; one request's."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._settings = settings
        self._noise = CoupledNoise(settings.seed)
        self._certain_from = certain_from(settings)
        self._shortlist = Shortlist(settings, self._noise) if Shortlist.helps(settings) else None

    def first(self, output: StepOutput, position: int) -> int:
        """Returns the target's pick for the first row."""
        return self._pick(output, 0, position)

    def propose(self, output: StepOutput, position: int) -> int:
        """Returns the draft's pick, with the noise that the target will see.

        The shortlist's pick does, sure or not: a proposal may be anything, and this one seldom differs from the whole row's.
        """
        if self._shortlist is None or output.probability(0) >= self._certain_from:
            return self._pick(output, 0, position)
        return self._shortlist.pick(*output.top(0), output.probability(0), position).token

    def judge(self, output: StepOutput, proposals: Sequence[int], position: int) -> list[int]:
        """Returns the proposals that equal the target's pick, then the target's next one."""
        return accept_equal(proposals, lambda row: self._pick(output, row, position + row))

    def _pick(self, output: StepOutput, row: int, position: int) -> int:
        confidence = output.probability(row)
        if confidence >= self._certain_from:
            return output.token(row)
        if self._shortlist is not None:
            token, is_sure = self._shortlist.pick(*output.top(row), confidence, position)
            if is_sure:
                return token
        return coupled_pick(output.logits[row], position, self._settings, self._noise)


def coupled_pick(logits: NDArray[np.float32], position: int, settings: FilterSettings, noise: CoupledNoise) -> int:
    """Returns the token that coupled sampling takes from a row of logits float32[vocab], which decides an absolute position."""
    ids, weights = filtered(logits, settings)
    if len(ids) == 1:
        return int(ids[0])
    return int(ids[(noise.log_uniform(position, ids) / weights).argmax()])
