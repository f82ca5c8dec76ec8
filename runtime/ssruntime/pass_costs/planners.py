"""The planners of an engine: one that learns from all requests, and new ones for deterministic requests."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from ssruntime.artifact import Artifact, DraftEntry
from ssruntime.backends.base import Backend, Slot
from ssruntime.config import DecodeSettings
from ssruntime.pass_costs.stored import known_costs, stored_costs
from ssruntime.planning.acceptance import UNKNOWN, Calibration
from ssruntime.planning.batch_costs import BatchCosts
from ssruntime.planning.planner import Planner, unlearned

_FIXED_SHARE: Final = 0.15
"""Cost of a draft step without any sublayer, as a fraction of an autoregressive step; not measured."""
_MLP_SHARE: Final = 2 / 3
"""Part of a layer's weights that is its MLP's, in usual models."""
_INT4_SAVES: Final = 0.85
"""Part of a sublayer's cost that weights of 4 bits save."""


class Planners:
    """Gives each request of an engine its planner. Safe to use from several threads."""

    def __init__(self, artifact: Artifact, backend: Backend, draft: DraftEntry | None) -> None:
        """Takes the artifact, its engines and its open draft."""
        self._artifact, self._backend, self._draft = artifact, backend, draft
        self._shared: Planner | None = None
        self._idle = unlearned()
        self._lock = threading.Lock()

    def planner_for(self, settings: DecodeSettings, slot: Slot) -> Planner:
        """Returns the planner of a request.

        The first request that needs costs may have to measure them.

        Args:
            settings: completed settings of the request.
            slot: its slot, before its first pass.
        """
        if settings.mode == "plain" or not settings.stopping.uses_costs:
            return self._idle
        return self._deterministic() if settings.deterministic else self.shared(slot)

    def shared(self, slot: Slot) -> Planner:
        """Returns the planner that learns, for which costs are measured if they are not known on this host.

        Args:
            slot: slot before its first pass.
        """
        with self._lock:
            if self._shared is None:
                alone = known_costs(self._artifact, self._backend, self._draft, [slot])
                costs = BatchCosts(alone, learns=True)
                for sequences in self._counts():
                    found = stored_costs(self._artifact, self._backend, self._draft, sequences)
                    if found is not None:
                        costs.use(sequences, found)
                self._shared = Planner(costs, self._calibration(), learns=True)
            return self._shared

    def measure_shared(self, slots: Sequence[Slot]) -> None:
        """Measures the costs of passes that up to as many sequences share as there are slots.

        What was measured on this host before is read, and what this engine knows already stays.

        Args:
            slots: slots that no sequence uses.
        """
        costs = self.shared(slots[0]).costs
        for sequences in self._counts():
            if sequences <= len(slots) and not costs.is_measured(sequences):
                costs.use(sequences, known_costs(self._artifact, self._backend, self._draft, slots[:sequences]))

    def _counts(self) -> list[int]:
        """Returns the numbers of sequences, above 1, that costs are known for: powers of 2, and the most."""
        most = self._backend.capabilities.max_rows
        return [*(1 << n for n in range(1, most.bit_length()) if 1 << n < most), *([most] if most > 1 else [])]

    def _deterministic(self) -> Planner:
        """Returns a new planner that depends on the artifact alone: what it saves up is of one request."""
        draft, layers = self._draft, self._artifact.manifest.model.num_layers
        share = 0.0
        if draft is not None:
            attention = 1 - (len(draft.skip.attention) + _INT4_SAVES * len(draft.int4.attention)) / layers
            mlp = 1 - (len(draft.skip.mlp) + _INT4_SAVES * len(draft.int4.mlp)) / layers
            share = _FIXED_SHARE + (1 - _FIXED_SHARE) * ((1 - _MLP_SHARE) * attention + _MLP_SHARE * mlp)
        return unlearned(share, self._calibration())

    def _calibration(self) -> Calibration:
        return (self._draft.calibration if self._draft else None) or UNKNOWN
