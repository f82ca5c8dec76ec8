"""Candidate drafts as real engines: built from the artifact's own verify graph and opened over its weights in well under a second."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnxruntime as ort

from ssruntime.artifact import VERIFY_GRAPH, SkipSet
from ssruntime.backends.ort.backend import OrtBackend
from ssruntime.backends.ort.slot import OrtSlot
from ssruntime.engine import Engine
from sstool.graph.lower import lower_draft


class DraftBuilder:
    """The open verify engine of one artifact, and drafts of it.

    Attributes:
        engine: decodes plainly.
        backend: the engine's, which opens drafts and makes slots.
        verify: the verify graph.
        num_layers: of the model.
    """

    def __init__(self, engine: Engine) -> None:
        """Takes an engine that was loaded without a draft, on ONNX Runtime."""
        assert isinstance(engine.backend, OrtBackend)
        self.engine = engine
        self.backend = engine.backend
        self.verify = ir.load(engine.artifact.path(VERIFY_GRAPH))
        self.num_layers = engine.artifact.manifest.model.num_layers

    def open(self, skip: SkipSet) -> ort.InferenceSession:
        """Builds and opens a draft.

        Raises:
            UnsupportedModelError: if a sublayer cannot be left out.
            ArtifactError: if ONNX Runtime cannot open the graph.
        """
        return self.backend.open_draft(self.graph(skip), "a candidate draft")

    def filled_slot(self, ids: Sequence[int]) -> OrtSlot:
        """Returns a slot whose cache holds the full model's keys and values of a text."""
        slot = self.backend.new_slot(len(ids) + 1)
        slot.prefill(ids)
        return slot

    def graph(self, skip: SkipSet) -> bytes:
        """Returns a draft's graph, serialized; weights are named by their place in the artifact's weights file."""
        return serialize(lower_draft(self.verify, skip))


def serialize(model: ir.Model) -> bytes:
    """Returns a graph as the bytes of an ONNX file."""
    data: bytes = ir.serde.serialize_model(model).SerializeToString()
    return data
