"""Builds candidate drafts as real engines, from the artifact's verify graph and over its weights file."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ssruntime.artifact import LowBitSet, SkipSet
from ssruntime.backends.base import DraftEngine, Slot
from ssruntime.engine import Engine
from sstool.artifact_files.graph_files import serialize
from sstool.graph.lower import lower_draft
from sstool.quantize.low_bit_draft import LowBitStore
from sstool.search.drafts.space import NO_OWN_WEIGHTS
from sstool.targets.registry import GRAPH_TARGETS


class DraftBuilder:
    """The open verify engine of one artifact, and the builder of drafts for it.

    Attributes:
        engine: engine without a draft, which decodes autoregressively (mode `plain`).
        backend: backend of the engine, which opens drafts and makes slots.
        verify: graph that drafts are made from.
        num_layers: number of layers of the model.
    """

    def __init__(self, engine: Engine, store: LowBitStore | None = None) -> None:
        """Takes an engine that was loaded without a draft, and the place for drafts' own weights, if any."""
        self.engine = engine
        self.backend = engine.backend
        self.verify = ir.load(engine.artifact.base_graph())
        self._store = store
        self._target = GRAPH_TARGETS[engine.artifact.manifest.target]
        self._max_context = engine.artifact.manifest.max_context
        self.num_layers = engine.artifact.manifest.model.num_layers

    def open(self, skip: SkipSet, int4: LowBitSet = NO_OWN_WEIGHTS) -> DraftEngine:
        """Returns an open draft that skips a set of sublayers.

        Args:
            skip: sublayers to leave out.
            int4: parts that get int4 weights of the draft's own.

        Raises:
            UnsupportedModelError: if a sublayer cannot be left out.
            ArtifactError: if the backend cannot open the graph.
        """
        draft = lower_draft(self.verify, skip)
        if int4:
            assert self._store is not None, "a draft with own weights needs a store"
            draft = self._store.apply(draft, int4)
        own = self._store.arrays(draft) if self._store is not None else None
        return self.backend.open_draft(serialize(self._target.finish(draft, self._max_context)), "a candidate draft", own)

    def filled_slot(self, ids: Sequence[int]) -> Slot:
        """Returns a slot whose KV cache the full model filled with the given token ids."""
        slot = self.backend.new_slot(len(ids) + 1)
        slot.prefill(ids)
        return slot
