"""A search for an artifact, which gets the draft that was found, or for a folder of results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ssruntime.artifact import Artifact, SkipSet, read_artifact
from ssruntime.errors import ArtifactError
from sstool.export import ExportRequest, export_artifact
from sstool.publish import staged_folder
from sstool.recipe import Recipe, check_recipe_depth
from sstool.redraft import clone_files, found, redraft
from sstool.report.page import write_report
from sstool.search.read import SEARCH
from sstool.search.records import LATENCY, SKIP_SET, TRIALS
from sstool.search.run import Outcome, SearchRequest, run_search
from sstool.search.settings import SearchSettings
from sstool.search.work import describe_progress, work_folder
from sstool.skip_set import SkipSpec


@dataclass(frozen=True, kw_only=True)
class SearchTarget:
    """What to search for, and where the result goes.

    Attributes:
        model: a checkpoint, exported for the search alone; None with an artifact.
        artifact: an artifact.
        out: folder for the results; None puts them into the artifact.
        force: replace the results of an earlier search in `out`.
        recipe: its skip sets are tried first; it must be for a model of this depth.
        recipe_name: what to call it in errors.
        settings: how to search.
        threads: of an engine.
        resume: go on with an interrupted search.
        progress: told what is being done.
    """

    model: str | None
    artifact: Path | None
    out: Path | None
    force: bool
    recipe: Recipe
    recipe_name: str
    settings: SearchSettings
    threads: int | None
    resume: bool
    progress: Callable[[str], None]


def search_for(target: SearchTarget) -> Outcome:
    """Searches and publishes.

    Raises:
        SelfSpecError: see `run_search`, `export_artifact` and `staged_folder`.
    """
    place = target.out if target.out is not None else target.artifact
    assert place is not None
    with work_folder(place, resume=target.resume) as work:
        with contextlib.ExitStack() as stack:
            if target.out is not None:
                results = stack.enter_context(staged_folder(target.out, force=target.force, is_ours=holds_search))
                outcome, _ = _search(target, work)
                _write_results(results, work, outcome)
            else:
                outcome, artifact = _search(target, work)
                folder = stack.enter_context(staged_folder(artifact.folder, force=True))
                target.progress("proving the draft that was found")
                _renew(folder, artifact, outcome, work)
        shutil.rmtree(work, ignore_errors=True)
    return outcome


def holds_search(folder: Path) -> bool:
    """Whether a folder holds a search's results and nothing else."""
    names = {path.name for path in folder.iterdir()}
    return TRIALS in names and names <= {TRIALS, LATENCY, SKIP_SET, "report.html"}


def _search(target: SearchTarget, work: Path) -> tuple[Outcome, Artifact]:
    artifact = _artifact(target, work)
    check_recipe_depth(target.recipe, artifact.manifest.model.num_layers, where=target.recipe_name)
    outcome = run_search(
        SearchRequest(
            folder=artifact.folder,
            work=work,
            settings=target.settings,
            starts=tuple(_starts(target, artifact)),
            known_latency=artifact.folder / SEARCH / LATENCY,
            threads=target.threads,
            resume=target.resume,
            progress=lambda progress: target.progress(describe_progress(progress)),
        )
    )
    return outcome, artifact


def _artifact(target: SearchTarget, work: Path) -> Artifact:
    """Returns the artifact to search for; of a checkpoint, one that is made for the search alone and kept with it."""
    if target.artifact is not None:
        return read_artifact(Path(os.path.realpath(target.artifact)))
    assert target.model is not None
    folder = work / "artifact"
    if target.resume:
        with contextlib.suppress(ArtifactError):
            return read_artifact(folder)
    recipe = target.recipe
    export = ExportRequest(model=target.model, out=folder, force=True, revision=recipe.revision, max_context=recipe.max_context)
    if recipe.model != target.model:
        export = dataclasses.replace(export, revision=None)
    return export_artifact(
        dataclasses.replace(
            export,
            check=lambda num_layers: check_recipe_depth(recipe, num_layers, where=target.recipe_name),
            progress=target.progress,
        )
    )


def _starts(target: SearchTarget, artifact: Artifact) -> Iterator[tuple[str, SkipSet]]:
    for spec in (target.recipe.skip_set, target.recipe.warm_start):
        if spec is not None:
            yield "recipe", spec.skip()
    if target.artifact is not None:
        for draft in artifact.manifest.drafts:
            yield "earlier", draft.skip


def _write_results(folder: Path, work: Path, outcome: Outcome) -> None:
    spec, _ = found(outcome)
    for name in (TRIALS, LATENCY):
        shutil.copyfile(work / name, folder / name)
    (folder / SKIP_SET).write_text(_skip_set_json(spec), encoding="utf-8")
    write_report(folder)


def _skip_set_json(spec: SkipSpec) -> str:
    return json.dumps({key: value for key, value in dataclasses.asdict(spec).items() if value is not None}) + "\n"


def _renew(folder: Path, artifact: Artifact, outcome: Outcome, work: Path) -> None:
    clone_files(artifact, folder)
    spec, tuning = found(outcome)
    redraft(folder, spec, search=work, tuning=tuning)
