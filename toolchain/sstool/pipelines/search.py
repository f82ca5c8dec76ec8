"""Searches for a draft, and publishes it in the artifact or writes its skip set to a folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ssruntime.artifact import Artifact, read_artifact
from ssruntime.errors import ArtifactError, RecipeError
from ssruntime.folder_lock import require_locks
from ssruntime.scratch import write_whole
from sstool.artifact_files.publish import recover, staged_folder
from sstool.checkpoint.describe import count_layers, describe_checkpoint
from sstool.checkpoint.packed.layout import packed_layout
from sstool.hub import ResolvedModel, resolve
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.pipelines.recipe import Recipe, check_recipe_depth
from sstool.pipelines.replace_draft import clone_files, draft_of, replace_draft
from sstool.quantize.draft_memory import DraftMemory, check_own_weights, searched_memory
from sstool.quantize.low_bit_draft import LowBitStore
from sstool.quantize.options import QuantizationOptions
from sstool.search.log.records import EARLIER, LATENCY, REPORT, SEARCH_FOLDER, SKIP_SET, TRIALS
from sstool.search.log.work_folder import ARTIFACT, CHECKPOINT, store_within, work_folder
from sstool.search.progress import describe_progress
from sstool.search.run import SearchOutcome, SearchRequest, Start, check_search, run_search
from sstool.search.settings import SearchSettings
from sstool.search_report.page import try_report
from sstool.skip_set import SkipSpec

_EXPORT_SETTINGS: Final = ("target", "dtype", "max_context", "max_kl", "cpu", "block_size")
"""Settings of a recipe that decide what is exported."""


@dataclass(frozen=True, kw_only=True)
class SearchTarget:
    """The model to search a draft for, and the place of the result.

    Attributes:
        model: checkpoint to export for this search alone, a folder or a hub id; None if `artifact` is given.
        artifact: folder of the artifact to search for; None if `model` is given.
        out: folder for the results; None puts them into the artifact.
        force: whether to replace the results of an earlier search in `out`.
        recipe: recipe whose skip sets are tried first; it must fit the depth of the model.
        recipe_name: name of the recipe in error messages.
        settings: settings of the search.
        draft_memory: most memory of a draft's own weights, such as `5%` (see `DraftMemory`); None for the
            default.
        threads: number of threads per engine; None for the default.
        resume: whether to resume an interrupted search.
        progress: called with the name of each step.
    """

    model: str | None
    artifact: Path | None
    out: Path | None
    force: bool
    recipe: Recipe
    recipe_name: str
    settings: SearchSettings
    draft_memory: str | None
    threads: int | None
    resume: bool
    progress: Callable[[str], None]


def search_for(target: SearchTarget) -> SearchOutcome:
    """Searches for a draft, publishes the result, and returns the outcome of the search.

    Raises:
        SelfSpecError: as `run_search`, `export_artifact` and `staged_folder` raise it.
    """
    require_locks()
    place = target.out if target.out is not None else target.artifact
    assert place is not None
    check_search(target.settings, target.threads)
    if target.draft_memory is not None:
        DraftMemory.parse(target.draft_memory)
    model = _check_model(target)  # before a folder is made, or an interrupted search is removed
    with work_folder(place, resume=target.resume, force=target.force) as work, contextlib.ExitStack() as stack:
        results = None
        if target.out is not None:
            results = stack.enter_context(staged_folder(target.out, force=target.force, is_ours=holds_search))
        artifact = _artifact(target, model, work)
        store = store_within(work, searched_memory(artifact.manifest, target.draft_memory))
        outcome = _search(target, artifact, work, store)
        if results is not None:
            _write_results(results, work, outcome)
        else:
            folder = stack.enter_context(staged_folder(artifact.folder, force=True))
            target.progress("checking the new draft")
            clone_files(artifact, folder)
            spec, tuning = draft_of(outcome)
            replace_draft(folder, spec, search=work, tuning=tuning, store=store)
    return outcome


def holds_search(folder: Path) -> bool:
    """Whether a folder holds the results of a search and nothing else."""
    names = {path.name for path in folder.iterdir()}
    return TRIALS in names and names <= {TRIALS, LATENCY, SKIP_SET, REPORT}


def _check_model(target: SearchTarget) -> ResolvedModel | None:
    """Returns the resolved checkpoint, or None for an artifact, after the checks that need no weights."""
    if target.artifact is not None:
        recover(target.artifact)
        manifest = read_artifact(target.artifact).manifest
        searched_memory(manifest, target.draft_memory)
        model, num_layers = None, manifest.model.num_layers
    else:
        assert target.model is not None
        model = resolve(target.model, target.recipe.revision if target.recipe.model == target.model else None)
        is_packed = packed_layout(model.folder) is not None
        num_layers = count_layers(model.folder) if is_packed else describe_checkpoint(model.folder).num_layers
        if target.draft_memory is not None and DraftMemory.parse(target.draft_memory) and target.recipe.dtype is not None:
            check_own_weights(target.recipe.target or ExportRequest.target, target.recipe.dtype, "leave out --draft-memory")
    check_recipe_depth(target.recipe, num_layers, where=target.recipe_name)
    return model


def _search(target: SearchTarget, artifact: Artifact, work: Path, store: LowBitStore | None) -> SearchOutcome:
    return run_search(
        SearchRequest(
            folder=artifact.folder,
            work=work,
            settings=target.settings,
            starts=tuple(_starts(target, artifact)),
            store=store,
            known_latency=_known_latency(target, artifact),
            threads=target.threads,
            resume=target.resume,
            progress=lambda progress: target.progress(describe_progress(progress)),
        )
    )


def _artifact(target: SearchTarget, model: ResolvedModel | None, work: Path) -> Artifact:
    """Returns the artifact to search for; a checkpoint is exported to a temporary one in the work folder."""
    if model is None:
        assert target.artifact is not None
        return read_artifact(Path(os.path.realpath(target.artifact)))
    folder, recipe = work / ARTIFACT, target.recipe
    checkpoint = _checkpoint_json(model, recipe)
    if target.resume:
        with contextlib.suppress(ArtifactError, OSError):
            artifact = read_artifact(folder)
            if (work / CHECKPOINT).read_bytes() == checkpoint:
                return artifact
            raise RecipeError(
                f"{work} holds a search for another checkpoint or other export settings, or the checkpoint's files have changed since",
                "pass what the search started with, or start over with --force instead of --resume",
            )
    artifact = export_artifact(
        ExportRequest(
            model=model,
            out=folder,
            force=True,
            target=recipe.target or ExportRequest.target,
            dtype=recipe.dtype or ExportRequest.dtype,
            max_context=recipe.max_context,
            quantization=QuantizationOptions(
                max_kl=recipe.max_kl, cpu=recipe.cpu, block_size=recipe.block_size, calibration=target.settings.calibration
            ),
            progress=target.progress,
        )
    )
    write_whole(work / CHECKPOINT, checkpoint)
    return artifact


def _checkpoint_json(model: ResolvedModel, recipe: Recipe) -> bytes:
    """Returns the identity of a checkpoint and its export, without reading the weights."""
    files = sorted(path for pattern in ("*.json", "*.safetensors") for path in model.folder.glob(pattern) if path.is_file())
    stats = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    settings = {name: getattr(recipe, name) for name in _EXPORT_SETTINGS}
    found = {"folder": str(model.folder.resolve()), "revision": model.revision, **settings, "files": stats}
    return (json.dumps(found) + "\n").encode()


def _known_latency(target: SearchTarget, artifact: Artifact) -> tuple[Path, ...]:
    places = [artifact.folder / SEARCH_FOLDER / LATENCY]
    return tuple(places if target.out is None else [*places, target.out / LATENCY])


def _starts(target: SearchTarget, artifact: Artifact) -> Iterator[Start]:
    for spec in (target.recipe.skip_set, target.recipe.warm_start):
        if spec is not None:
            yield Start(source="recipe", skip=spec.skip(), int4=spec.low_bit())
    if target.artifact is not None:
        for draft in artifact.manifest.drafts:
            yield Start(source=EARLIER, skip=draft.skip, int4=draft.int4)


def _write_results(folder: Path, work: Path, outcome: SearchOutcome) -> None:
    spec, _ = draft_of(outcome)
    for name in (TRIALS, LATENCY):
        shutil.copyfile(work / name, folder / name)
    (folder / SKIP_SET).write_text(_skip_set_json(spec), encoding="utf-8")
    try_report(folder)


def _skip_set_json(spec: SkipSpec) -> str:
    return json.dumps({key: value for key, value in spec.to_json().items() if value is not None}) + "\n"
