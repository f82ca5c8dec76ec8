"""Writes the quantized artifact of an fp32 artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from ssruntime.artifact import ANY_PROCESSOR, MANIFEST, VNNI, WEIGHTS, Artifact, Manifest
from sstool.artifact_files.assemble import Lowering, describe_files, draft_entry, graphs_of, write_manifest
from sstool.artifact_files.graph_files import save_graphs
from sstool.checkpoint.linked_folder import link_or_copy
from sstool.quantize.plan import QuantizationPlan
from sstool.skip_set import SkipSpec


def write_quantized(source: Artifact, folder: Path, plan: QuantizationPlan, spec: SkipSpec, lowering: Lowering) -> Manifest:
    """Writes a whole artifact, which is not yet validated, and returns its manifest.

    Args:
        source: the fp32 artifact of the same checkpoint, whose text files are taken over.
        folder: folder to write into.
        plan: what to quantize, and how.
        spec: skip set of the draft.
        lowering: target, data type and context.

    Raises:
        UnsupportedModelError: if a graph is not valid.
        OSError: if the disk is full or a file cannot be written.
    """
    graphs = graphs_of(plan.apply(ir.load(source.base_graph())), spec, lowering)
    save_graphs(folder, graphs)
    for name in _text_files(source, graphs):
        link_or_copy(source.path(name), folder / name)
    files = describe_files(folder)
    manifest = dataclasses.replace(
        source.manifest,
        model=dataclasses.replace(source.manifest.model, weight_bytes=files[WEIGHTS].size),
        dtype=lowering.dtype,
        drafts=(draft_entry(folder, spec, lowering.dtype),),
        instructions=VNNI if plan.needs_vnni else ANY_PROCESSOR,
        files=files,
    )
    write_manifest(folder, manifest)
    return manifest


def _text_files(source: Artifact, graphs: Mapping[str, ir.Model]) -> list[str]:
    return [name for name in source.manifest.files if name not in graphs and name not in (*source.manifest.weights, MANIFEST)]
