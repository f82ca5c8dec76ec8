"""Replaces the draft of an artifact: graph, skip set, stopping rule, and the records of the search for it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import onnx_ir as ir

from ssruntime.artifact import (
    DRAFT_GRAPH,
    DRAFT_WEIGHTS,
    MANIFEST,
    Artifact,
    FileEntry,
    Manifest,
    Tuning,
    file_digest,
    read_artifact,
)
from ssruntime.errors import RecipeError
from sstool.artifact_files.assemble import Lowering, draft_entry, draft_graph, write_manifest
from sstool.artifact_files.bits_record import Kernels, known_bits, store_bits, tie_tolerance
from sstool.artifact_files.graph_files import write_draft
from sstool.checkpoint.linked_folder import link_or_copy
from sstool.quantize.low_bit_draft import LowBitStore, with_low_bits
from sstool.search.log.records import LATENCY, SEARCH_FOLDER, TRIALS
from sstool.search.run import SearchOutcome
from sstool.skip_set import SkipSpec
from sstool.targets.registry import GRAPH_TARGETS
from sstool.validation.bits import GATE_SEQUENCES, measure_bits
from sstool.validation.calibrate import calibrate
from sstool.validation.gate import require_sound
from sstool.validation.opening import open_to_check


def replace_draft(
    folder: Path, spec: SkipSpec, *, search: Path | None = None, tuning: Tuning | None = None, store: LowBitStore | None = None
) -> Manifest:
    """Replaces the draft of an unpublished artifact, and checks the new one.

    Args:
        folder: folder of a complete artifact that is not published and that no process reads.
        spec: skip set and stopping rule of the new draft.
        search: folder with the records of a search, which are copied; None without a search.
        tuning: the manifest's record of the search; None without one.
        store: int4 weights that a search has made; None makes the draft's own weights anew.

    Returns:
        The new manifest.

    Raises:
        UnsupportedModelError: if a sublayer cannot be skipped, the graph is not valid ONNX, or speculative
            decoding gives other tokens than autoregressive decoding.
        OSError: if the disk is full or a file cannot be written.
    """
    artifact = read_artifact(folder)
    manifest = write_other_draft(folder, spec, tuning, store)
    if search is not None:
        _copy_records(search, folder / SEARCH_FOLDER)
    with open_to_check(read_artifact(folder), max_sequences=GATE_SEQUENCES) as engine:
        if known_bits(artifact, Kernels.here(engine.backend.threads, engine.backend.device)) is None:
            store_bits(artifact, measure_bits(engine.backend, exact_drafts=engine.artifact.manifest.has_exact_drafts))
        lossless = require_sound(engine, manifest.model.source, tie_tolerance=tie_tolerance(engine))
    _replace_manifest(folder, dataclasses.replace(manifest, gate={**manifest.gate, "lossless": lossless}))
    calibrate(folder)
    return read_artifact(folder).manifest


def write_other_draft(folder: Path, spec: SkipSpec, tuning: Tuning | None, store: LowBitStore | None = None) -> Manifest:
    """Writes the files of another draft of an unpublished artifact, and its manifest; checks nothing.

    Args:
        folder: folder of the artifact.
        spec: the new draft.
        tuning: the manifest's record of the search for it; None without one.
        store: int4 weights that a search has made; None makes the draft's own weights anew.

    Raises:
        UnsupportedModelError: if a sublayer cannot be skipped, or the graph is not valid ONNX.
        OSError: if the disk is full or a file cannot be written.
    """
    artifact = read_artifact(folder)
    old = artifact.manifest
    names = (DRAFT_GRAPH, DRAFT_WEIGHTS)
    lowering = Lowering(target=GRAPH_TARGETS[old.target], dtype=old.dtype, max_context=old.max_context)
    graph = draft_graph(ir.load(artifact.base_graph()), spec, lowering, with_low_bits if store is None else store.apply)
    for name in names:
        (folder / name).unlink(missing_ok=True)  # it may be a hard link to the file of a published artifact
    write_draft(graph, folder)
    ours = {name: folder / name for name in names if (folder / name).exists()}
    files = {name: entry for name, entry in old.files.items() if name not in names}
    files |= {name: FileEntry(size=path.stat().st_size, sha256=file_digest(path)) for name, path in ours.items()}
    manifest = dataclasses.replace(old, drafts=(draft_entry(folder, spec, old.dtype),), files=files, tuning=tuning)
    _replace_manifest(folder, manifest)
    return manifest


def draft_of(outcome: SearchOutcome) -> tuple[SkipSpec, Tuning]:
    """Returns the draft that a search found, and the manifest's record of the search.

    The draft is the winner of the search. If no candidate was faster than autoregressive decoding, it is the
    closest one, and the artifact's default mode is `plain`.

    Raises:
        RecipeError: if every candidate failed.
    """
    trial = outcome.winner or outcome.closest
    if trial is None:
        raise RecipeError(
            f"the search found no draft that works. {outcome.result.remark}", "export with --no-search, and please report this"
        )
    # The search tunes a threshold to compare candidates alike; the artifact's rule needs no tuning.
    spec = dataclasses.replace(trial.spec(), stopping=None, mode="plain" if outcome.winner is None else None)
    tuning = Tuning(
        speedups=outcome.result.by_kind,
        cpu=outcome.header.cpu,
        threads=outcome.header.threads,
        onnxruntime=outcome.header.onnxruntime,
        trials=outcome.num_trials,
        remark=outcome.result.remark,
    )
    return spec, tuning


def clone_files(artifact: Artifact, folder: Path) -> None:
    """Puts the files of an artifact into an empty folder, as hard links if the file system supports them.

    Files that a user added to the artifact's folder are copied; the records of an earlier search are not.

    Raises:
        OSError: if the disk is full or a file cannot be written.
    """
    ours = {*artifact.manifest.files, MANIFEST}
    for source in artifact.folder.iterdir():
        target = folder / source.name
        if source.name in ours:
            link_or_copy(source, target)
        elif not source.is_dir():
            shutil.copy2(source, target, follow_symlinks=False)
        elif source.name != SEARCH_FOLDER:
            shutil.copytree(source, target, symlinks=True)


def _replace_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)  # it may be a hard link to the file of a published artifact
    write_manifest(folder, manifest)


def _copy_records(source: Path, target: Path) -> None:
    from sstool.search_report.page import try_report

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in (TRIALS, LATENCY):
        shutil.copyfile(source / name, target / name)
    try_report(target)
