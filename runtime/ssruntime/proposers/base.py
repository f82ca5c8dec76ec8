"""The interface of proposers, which give a sequence tokens to verify."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from ssruntime.backends.base import Pass, StepOutput
from ssruntime.proposal import Proposal


class SequenceView(Protocol):
    """What a proposer may read of a sequence.

    Attributes:
        ids: token ids of the prompt and of the committed tokens.
        start: number of leading tokens whose KV is in the cache; it is less than the number of `ids`.
    """

    @property
    def ids(self) -> Sequence[int]:
        """Token ids of the prompt and of the committed tokens."""

    @property
    def start(self) -> int:
        """Number of leading tokens whose KV is in the cache."""


class Proposer(Protocol):
    """Proposes tokens that continue a sequence. An instance belongs to one request."""

    def propose(self, sequence: SequenceView, limit: int) -> Generator[Pass, StepOutput, Proposal]:
        """Yields the passes that the proposer needs, if any, and returns its proposal, which may be empty.

        Args:
            sequence: sequence to continue.
            limit: largest number of tokens in the draft sequence; may be 0.
        """

    def observe(self, proposed: int, accepted: int, emitted: Sequence[int]) -> None:
        """Records the result of the round.

        Args:
            proposed: number of tokens in the draft sequence; alternatives do not count.
            accepted: how many of these were accepted.
            emitted: tokens that the round emitted.
        """
