"""A finished artifact gets another draft: a new small graph over the same weights, its skip set and exit, and how they were found."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import onnx_ir as ir

from ssruntime.artifact import (
    DRAFT_GRAPH,
    MANIFEST,
    VERIFY_GRAPH,
    Artifact,
    FileEntry,
    Manifest,
    Tuning,
    file_digest,
    read_artifact,
)
from ssruntime.engine import load
from ssruntime.errors import RecipeError
from sstool.artifact_files.assemble import write_manifest
from sstool.graph.lower import lower_draft
from sstool.search.log.records import LATENCY, SEARCH_FOLDER, TRIALS
from sstool.search.run import SearchOutcome
from sstool.skip_set import SkipSpec
from sstool.validation.gate import require_sound


def replace_draft(folder: Path, spec: SkipSpec, *, search: Path, tuning: Tuning) -> Manifest:
    """Replaces the draft of an artifact that nobody reads yet, and proves the new one.

    Args:
        folder: a whole artifact, under no name of its own.
        spec: the skip set and its exit.
        search: folder with the search's records, which are copied.
        tuning: what the manifest says of it.

    Returns:
        The manifest as written.

    Raises:
        UnsupportedModelError: if a sublayer cannot be left out, or decoding with the draft gives other tokens.
        OSError: if the disk is full or refuses.
    """
    artifact = read_artifact(folder)
    path = folder / DRAFT_GRAPH
    path.unlink(missing_ok=True)  # where it is a link to another artifact's, that one stays as it is
    ir.save(lower_draft(ir.load(folder / VERIFY_GRAPH), spec.skip()), path)
    _copy_records(search, folder / SEARCH_FOLDER)
    manifest = dataclasses.replace(
        artifact.manifest,
        drafts=(spec.draft_entry(artifact.manifest.dtype),),
        files={**artifact.manifest.files, DRAFT_GRAPH: FileEntry(size=path.stat().st_size, sha256=file_digest(path))},
        tuning=tuning,
    )
    _write_manifest_anew(folder, manifest)
    with load(folder, max_context=manifest.max_context, max_sequences=1) as engine:
        lossless = require_sound(engine, manifest.model.source)
    manifest = dataclasses.replace(manifest, gate={**manifest.gate, "lossless": lossless})
    _write_manifest_anew(folder, manifest)
    return manifest


def draft_of(outcome: SearchOutcome) -> tuple[SkipSpec, Tuning]:
    """Returns what a search found, as an artifact keeps it: the winner, or the one that came closest to plain decoding.

    Raises:
        RecipeError: if every candidate failed.
    """
    trial = outcome.winner or outcome.closest
    if trial is None:
        raise RecipeError(f"the search found no draft that works. {outcome.result.remark}", "export with --no-search, and report this")
    spec = dataclasses.replace(trial.spec(), mode="plain" if outcome.winner is None else None)
    tuning = Tuning(
        speedup=outcome.result.speedup,
        cpu=outcome.header.cpu,
        threads=outcome.header.threads,
        onnxruntime=outcome.header.onnxruntime,
        trials=outcome.num_trials,
        remark=outcome.result.remark,
    )
    return spec, tuning


def clone_files(artifact: Artifact, folder: Path) -> None:
    """Puts an artifact's files into an empty folder, without a second copy of the weights where the file system can link.

    What a user put beside them comes along; the records of an earlier search do not.

    Raises:
        OSError: if the disk is full or refuses.
    """
    ours = {*artifact.manifest.files, MANIFEST}
    for source in artifact.folder.iterdir():
        target = folder / source.name
        if source.name in ours:
            _link_or_copy(source, target)
        elif not source.is_dir():
            shutil.copy2(source, target, follow_symlinks=False)
        elif source.name != SEARCH_FOLDER:
            shutil.copytree(source, target, symlinks=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_manifest_anew(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)  # never through a link
    write_manifest(folder, manifest)


def _copy_records(source: Path, target: Path) -> None:
    from sstool.search_report.page import write_report

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in (TRIALS, LATENCY):
        shutil.copyfile(source / name, target / name)
    write_report(target)
