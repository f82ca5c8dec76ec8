"""The open sessions of one artifact, over packed weights that all processes share where there are some."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from ssruntime import graph_io
from ssruntime.artifact import STEP_GRAPH, VERIFY_GRAPH, Artifact
from ssruntime.backends.base import BackendOptions
from ssruntime.backends.onnx_wire import external_initializers
from ssruntime.backends.ort.packing import PackedWeights, open_packed
from ssruntime.backends.ort.thread_pool import PROVIDERS, SessionSettings
from ssruntime.backends.ort.weight_files import name_by_content, place, with_real_weights
from ssruntime.errors import ArtifactError, BackendUnavailableError

logger = logging.getLogger(__name__)

_FIRST_VERSION: Final = (1, 32)
_INPUTS: Final = 17
"""Inputs of GroupQueryAttention with `query_seqlens`."""


class TargetSessions(NamedTuple):
    """The sessions of the whole model (see `ssruntime.graph_io`).

    Attributes:
        verify: session for passes of any query length.
        step: session for passes of one token; None if they need not have the bits of wider passes.
    """

    verify: ort.InferenceSession
    step: ort.InferenceSession | None


class Sessions:
    """The sessions of an artifact's engines, and more over the same weights.

    Attributes:
        by_graph: session of each engine by the file name of its graph.
        packing: `shared` or `private (why)`; see `backends.base.Backend`.
    """

    def __init__(self, artifact: Artifact, options: BackendOptions, settings: SessionSettings) -> None:
        """Opens the engines that the options ask for.

        Raises:
            ArtifactError: if a graph cannot be opened or is not as the graph contract says.
        """
        require_query_lengths()
        if STEP_GRAPH not in artifact.manifest.files:
            raise ArtifactError(f"manifest.json does not list {STEP_GRAPH}", "export the model again")
        self._artifact, self._settings = artifact, settings
        self._packed, self.packing = open_packed(artifact, verify=options.verify_digests, options=settings.make)
        draft = options.draft
        names = (VERIFY_GRAPH, *([STEP_GRAPH] if options.bit_exact else []), *([draft.graph] if draft else []))
        graphs = {name: artifact.path(name).read_bytes() for name in names}
        own = None
        if draft is not None and draft.weights and self._packed is not None:
            own, self.packing = open_packed(artifact, verify=options.verify_digests, options=settings.make, draft=draft)
            if own is None:
                self._packed = None
        opened = None if self._packed is None else self._open_packed(self._packed, graphs, own)
        if opened is None:
            self._packed = None
            opened = {name: self._open_real(graph, name, {}) for name, graph in graphs.items()}
        for name, session in opened.items():
            check_contract(session, name, takes_trees=name == VERIFY_GRAPH)
        self.by_graph = opened

    def open(self, graph: bytes, name: str, own: Mapping[str, NDArray[Any]]) -> ort.InferenceSession:
        """Returns a session of another graph; each of its weights is one of the verify graph or of `own`.

        Args:
            graph: a serialized ONNX model.
            name: name of the graph in error messages.
            own: weights that the verify graph lacks, by initializer name; they must not change as long as the
                session is used.

        Raises:
            ArtifactError: if the graph cannot be opened.
        """
        if self._packed is None:
            return self._open_real(graph, name, own)
        given = {key: tensor for key, tensor in external_initializers(graph).items() if key in own}
        return self._open(self._packed.splice(graph, name, given), name, self._packed.folder, own)

    def _open_packed(
        self, packed: PackedWeights, graphs: Mapping[str, bytes], draft: PackedWeights | None
    ) -> dict[str, ort.InferenceSession] | None:
        """Returns the sessions of the artifact's graphs; None if the entries of the cache cannot be used.

        Args:
            packed: entry of the shared weights.
            graphs: serialized graphs by name.
            draft: entry of the draft's own weights; None if it has none.
        """
        own, beside = {}, ""
        if draft is not None:
            beside = name_by_content(draft.digest)
            own = draft.at(beside)
        spliced = {name: packed.splice(graph, name, {} if name in (VERIFY_GRAPH, STEP_GRAPH) else own) for name, graph in graphs.items()}
        try:
            if draft is not None:  # ONNX Runtime reads a session's weights from one folder
                place(draft.data, packed.folder / beside)
            return {name: self._open(graph, name, packed.folder, {}) for name, graph in spliced.items()}
        except (ArtifactError, OSError) as err:  # another process may have evicted the entry since it was read
            logger.warning("the packed weights cannot be opened; packing privately: %s", err)
            self.packing = "private (the packed weights could not be opened)"
            return None

    def _open_real(self, graph: bytes, name: str, own: Mapping[str, NDArray[Any]]) -> ort.InferenceSession:
        real, folder = with_real_weights(self._artifact, graph)
        return self._open(real, name, folder, own)

    def _open(self, graph: bytes, name: str, folder: Path, own: Mapping[str, NDArray[Any]]) -> ort.InferenceSession:
        options = self._settings.make()
        try:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
            if own:
                options.add_external_initializers(list(own), [ort.OrtValue.ortvalue_from_numpy(array) for array in own.values()])
            # No fallback: there is no other provider, and a second attempt would print to stdout.
            session = ort.InferenceSession(graph, options, providers=PROVIDERS, enable_fallback=False)
        except Exception as err:  # ONNX Runtime's exceptions share no closer base class
            raise ArtifactError(f"ONNX Runtime cannot open {name}: {err}", "export the model again") from err
        return session


def require_query_lengths() -> None:
    """Checks that this ONNX Runtime's attention kernel takes several sequences of different lengths.

    Raises:
        BackendUnavailableError: if it does not.
    """
    # The list of schemas takes tens of milliseconds, so new versions are believed.
    if tuple(int(part) for part in ort.__version__.split(".")[:2]) >= _FIRST_VERSION:
        return
    schemas = state.get_all_operator_schema()
    inputs = next((len(schema.inputs) for schema in schemas if schema.name == "GroupQueryAttention"), 0)
    if inputs < _INPUTS:
        raise BackendUnavailableError(
            f"target ort-cpu needs ONNX Runtime {_FIRST_VERSION[0]}.{_FIRST_VERSION[1]} or newer, found {ort.__version__}",
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'sstool[cpu]'",
        )


def check_contract(session: ort.InferenceSession, name: str, *, takes_trees: bool) -> None:
    """Checks that a session has the inputs and outputs of the graph contract.

    Raises:
        ArtifactError: naming what it lacks.
    """
    inputs = {v.name for v in session.get_inputs()}
    outputs = {v.name for v in session.get_outputs()}
    lengths = {graph_io.QUERY_SEQLENS, graph_io.SEQLENS_K, graph_io.TOTAL_SEQUENCE_LENGTH}
    needed = lengths | {graph_io.INPUT_IDS, graph_io.POSITION_IDS, graph_io.LOGITS_INDEX}
    missing = (needed | {graph_io.PAST_LENGTH, graph_io.TREE_MASK} if takes_trees else needed) - inputs
    missing |= {graph_io.TOKEN, graph_io.CONFIDENCE, graph_io.TOP_TOKENS, graph_io.TOP_LOGITS, graph_io.LOGITS} - outputs
    if missing:
        raise ArtifactError(f"{name} lacks the inputs or outputs {', '.join(sorted(missing))}", "export the model again")
