"""What the decode loop and the proposer need of an acceptance rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ssruntime.backends.base import StepOutput


class Acceptance(Protocol):
    """Picks tokens from engine outputs, and decides how much of a draft stands.

    `position` is the absolute position, in the sequence, of the token that the first row of an output decides.
    """

    def first(self, output: StepOutput, position: int) -> int:
        """Returns plain decoding's token from the first row of a verify pass."""

    def propose(self, output: StepOutput, position: int) -> int:
        """Returns the draft's token from a draft pass."""

    def judge(self, output: StepOutput, proposals: Sequence[int], position: int) -> list[int]:
        """Returns the proposals that stand, followed by one more token: a correction, or a bonus if all stand."""
