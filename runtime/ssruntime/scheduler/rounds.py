"""Records what the rounds of a batch cost."""

from __future__ import annotations

from collections import abc

from ssruntime.backends.base import Pass
from ssruntime.scheduler.member import Member
from ssruntime.scheduler.single import RECORDED


class RoundRecorder:
    """Adds up the passes of the round that a batch runs, and records the round with its verify pass."""

    def __init__(self) -> None:
        self._steps = 0
        self._seconds = 0.0
        self._rounds = 0
        self._was_drafted = False

    def add(self, passes: abc.Sequence[tuple[Member, Pass]], seconds: float, sequences: int) -> None:
        """Adds a pass.

        Args:
            passes: the requests and their passes, all of one kind.
            seconds: seconds of the pass in the engine.
            sequences: number of sequences that share the passes of a round.
        """
        kind = passes[0][1].kind
        costs = None
        for member, _ in passes:
            costs = member.costs
            if costs is not None:
                break
        else:
            return
        if kind == "prefill":  # its sequence may plan its first round now
            costs.sequences = sequences + 1
            return
        costs.sequences = sequences
        self._seconds += seconds
        if kind == "draft":
            self._steps += 1
            return
        self._rounds += 1
        costs.context = sum(wanted.start for _, wanted in passes) // len(passes)
        drafted = self._steps > 0
        if drafted is not self._was_drafted or not self._rounds % RECORDED:
            rows, start = max((len(wanted.trunk), wanted.start) for _, wanted in passes)
            costs.record(rows, self._steps, start, self._seconds)
        self._steps, self._seconds, self._was_drafted = 0, 0.0, drafted
