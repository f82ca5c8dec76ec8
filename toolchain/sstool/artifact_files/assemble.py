"""Writes an artifact's files from a checkpoint: graphs, weights, text files and the manifest."""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx_ir as ir

from ssruntime.artifact import (
    BASE_GRAPH,
    DRAFT_GRAPH,
    DRAFT_WEIGHTS,
    MANIFEST,
    SCHEMA_VERSION,
    STEP_GRAPH,
    VERIFY_GRAPH,
    WEIGHTS,
    DraftEntry,
    FileEntry,
    KvLayout,
    Manifest,
    ModelInfo,
    file_digest,
)
from ssruntime.version import version
from sstool.artifact_files.graph_files import save_graphs
from sstool.artifact_files.text_files import write_text_files
from sstool.checkpoint.attention_pattern import narrowest_window
from sstool.checkpoint.describe import Checkpoint
from sstool.checkpoint.own_head import has_own_head
from sstool.checkpoint.rope import ropes
from sstool.checkpoint.variants import ignored_settings
from sstool.graph.build import build_decoder
from sstool.graph.lower import lower_draft, lower_step, lower_verify, plan_lowering
from sstool.hub import ResolvedModel
from sstool.precision import PRECISIONS
from sstool.quantize.low_bit_draft import LowBits, with_low_bits
from sstool.skip_set import SkipSpec
from sstool.targets.base import GraphTarget
from sstool.targets.registry import cast

_TOOLS: Final = ("mobius-onnx", "onnx-ir", "onnxruntime", "transformers", "torch")


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """What the graphs of an artifact are lowered for.

    Attributes:
        target: execution target.
        dtype: data type of weights and computation.
        max_context: largest number of positions in one sequence.
    """

    target: GraphTarget
    dtype: str
    max_context: int


def assemble(folder: Path, model: ResolvedModel, checkpoint: Checkpoint, spec: SkipSpec, lowering: Lowering) -> Manifest:
    """Writes a whole artifact, which is not yet validated, and returns its manifest.

    Args:
        folder: empty folder to write into.
        model: name, folder and revision of the checkpoint.
        checkpoint: the checkpoint, described and checked.
        spec: skip set of the draft, and the stopping rule that was tuned for it.
        lowering: target, data type and context.

    Returns:
        The manifest as written.

    Raises:
        CheckpointError: if the weights lack a tensor.
        UnsupportedModelError: if no correct graph can be built.
        OSError: if the disk is full or a file cannot be written.
    """
    _write_graphs(folder, checkpoint, spec, lowering)
    write_text_files(checkpoint, folder)
    manifest = _manifest(folder, model, checkpoint, spec, lowering)
    write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest to `manifest.json` in an artifact's folder."""
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _write_graphs(folder: Path, checkpoint: Checkpoint, spec: SkipSpec, lowering: Lowering) -> None:
    base = lowered(checkpoint.folder, checkpoint)
    save_graphs(folder, graphs_of(cast(base, PRECISIONS[lowering.dtype]), spec, lowering))
    # Graphs are reference cycles that hold the weights: free these before the gate loads them again.
    del base
    gc.collect()


def lowered(folder: Path, checkpoint: Checkpoint) -> ir.Model:
    """Returns the verify graph, in fp32, of a folder with the checkpoint's weights or others of their shapes.

    Raises:
        CheckpointError: if the weights lack a tensor.
        UnsupportedModelError: if no correct graph can be built.
    """
    decoder = build_decoder(folder, own_head=has_own_head(checkpoint), ignored=ignored_settings(checkpoint.config))
    return lower_verify(decoder, plan_lowering(checkpoint))


def graphs_of(base: ir.Model, spec: SkipSpec, lowering: Lowering) -> dict[str, ir.Model]:
    """Returns the graphs of an artifact by file name; the first one has every shared weight."""
    target = lowering.target
    draft = draft_graph(base, spec, lowering)
    graphs = {VERIFY_GRAPH: base}
    if target.keeps_base:
        graphs = {BASE_GRAPH: base, VERIFY_GRAPH: target.finish(base.clone(), lowering.max_context)}
    if target.has_step:
        graphs[STEP_GRAPH] = lower_step(base)
    return {**graphs, DRAFT_GRAPH: draft}


def draft_graph(base: ir.Model, spec: SkipSpec, lowering: Lowering, low_bits: LowBits = with_low_bits) -> ir.Model:
    """Returns the graph of a draft, as a copy over the same tensors.

    Args:
        base: graph of the whole model.
        spec: what the draft skips, and its parts in int4.
        lowering: what the graph is lowered for.
        low_bits: makes the parts in int4.

    Raises:
        UnsupportedModelError: if a sublayer cannot be left out.
    """
    return lowering.target.finish(low_bits(lower_draft(base, spec.skip()), spec.low_bit()), lowering.max_context)


def draft_entry(folder: Path, spec: SkipSpec, dtype: str) -> DraftEntry:
    """Returns the manifest's entry of the draft whose files lie in an artifact's folder."""
    own = (DRAFT_WEIGHTS,) if (folder / DRAFT_WEIGHTS).exists() else ()
    return dataclasses.replace(spec.draft_entry(dtype), weights=own)


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Returns the manifest's entries of the files in an artifact's folder, without the manifest itself."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != MANIFEST]
    return {path.name: FileEntry(size=path.stat().st_size, sha256=file_digest(path)) for path in paths}


def _manifest(folder: Path, model: ResolvedModel, checkpoint: Checkpoint, spec: SkipSpec, lowering: Lowering) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelInfo(
            source=model.source,
            revision=model.revision,
            family=checkpoint.model_type,
            architecture=checkpoint.architecture,
            num_layers=checkpoint.num_layers,
            hidden_size=checkpoint.hidden_size,
            vocab_size=checkpoint.vocab_size,
            num_parameters=checkpoint.num_parameters,
            weight_bytes=(folder / WEIGHTS).stat().st_size,
            window=narrowest_window(checkpoint.attention),
        ),
        target=lowering.target.name,
        dtype=lowering.dtype,
        max_context=lowering.max_context,
        kv=KvLayout(
            num_layers=checkpoint.num_layers,
            kv_heads=checkpoint.kv_heads,
            head_dim=checkpoint.head_dim,
            dtype=PRECISIONS[lowering.dtype].compute,
        ),
        rope=ropes(checkpoint.config),
        weights=(WEIGHTS,),
        drafts=(draft_entry(folder, spec, lowering.dtype),),
        files=describe_files(folder),
        tools={"sstool": version(), **{name: _version(name) for name in _TOOLS}},
    )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
