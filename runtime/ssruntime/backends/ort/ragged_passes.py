"""Runs passes of several sequences in few engine passes, each with the bits of that pass alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ssruntime import graph_io
from ssruntime.backends.base import Pass, StepOutput
from ssruntime.backends.ort.kv_arena import KvArena
from ssruntime.backends.ort.ragged_port import RaggedPort, RowPass
from ssruntime.backends.ort.sessions import TargetSessions

_Kind = Literal["target", "draft step", "draft"]


class SharingSlot(Protocol):
    """A slot whose passes can share engine passes with those of other rows."""

    row: int

    def check(self, wanted: Pass) -> None:
        """Raises ValueError if a pass does not fit."""

    def run(self, wanted: Pass) -> StepOutput:
        """Returns the output of a pass alone."""

    def add_pass(self, wanted: Pass, seconds: float) -> None:
        """Counts a pass that was run together with others."""


class RaggedPasses:
    """The engines of one KV arena, for passes that cover several of its rows."""

    def __init__(
        self,
        target: TargetSessions,
        draft: ort.InferenceSession | None,
        rope: Mapping[str, NDArray[np.float32]],
        arena: KvArena,
        *,
        vocab_size: int,
    ) -> None:
        exact = target.step is not None
        least = graph_io.MIN_QUERY_LENGTH if exact else 1
        self._verify = RaggedPort(target.verify, arena, rope, vocab_size=vocab_size, min_query_length=least)
        self._step = self._verify
        if target.step is not None:
            self._step = RaggedPort(target.step, arena, rope, vocab_size=vocab_size, padding=graph_io.STEP_PADDING)
        self._draft = None if draft is None else RaggedPort(draft, arena, rope, vocab_size=vocab_size)

    def run(self, passes: Sequence[tuple[SharingSlot, Pass]]) -> list[StepOutput]:
        """Returns the output of each pass; see `backends.base.Backend.run`."""
        for slot, wanted in passes:
            slot.check(wanted)
        outputs: list[StepOutput | None] = [None] * len(passes)
        for kind, places in _groups(passes).items():
            found = self._run_group(kind, [passes[at] for at in places])
            for at, output in zip(places, found, strict=True):
                outputs[at] = output
        return [output for output in outputs if output is not None]

    def ports(self) -> Iterable[RaggedPort]:
        """Returns the ports of all engines."""
        return {port for port in (self._verify, self._step, self._draft) if port is not None}

    def _run_group(self, kind: _Kind, group: Sequence[tuple[SharingSlot, Pass]]) -> list[StepOutput]:
        if len(group) == 1:
            slot, wanted = group[0]
            return [slot.run(wanted)]
        rows = [RowPass(slot.row, wanted) for slot, wanted in group]
        port = self._draft if kind != "target" else self._verify if any(r.query_length > 1 for r in rows) else self._step
        assert port is not None, "this backend has no draft engine"
        outputs, seconds = port.run(rows)
        for slot, wanted in group:
            slot.add_pass(wanted, seconds)
        return outputs


def _groups(passes: Sequence[tuple[SharingSlot, Pass]]) -> dict[_Kind, list[int]]:
    """Returns the passes that run together, as places in `passes`.

    Draft steps are apart from longer draft passes: the draft runs one token with the kernel for a single
    query row, which a wider pass does not use.
    """
    groups: dict[_Kind, list[int]] = {}
    for at, (_, wanted) in enumerate(passes):
        kind: _Kind = "target" if wanted.kind != "draft" else "draft step" if len(wanted.trunk) == 1 else "draft"
        groups.setdefault(kind, []).append(at)
    return groups
