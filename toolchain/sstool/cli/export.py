"""`sstool export`: a checkpoint in, an artifact out, or nothing under the artifact's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sstool.cli.options import debug_option
from sstool.cli.search_options import SearchOptions, read_recipe_or_none, search_options

if TYPE_CHECKING:
    from ssruntime.artifact import Artifact, Tuning
    from sstool.pipelines.recipe import Recipe
    from sstool.skip_set import SkipSpec


@click.command(name="export")
@click.option(
    "--model", metavar="PATH_OR_HUB_ID", help="A folder with a Hugging Face checkpoint, or a hub id.  [required, here or in the recipe]"
)
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Where the artifact goes.")
@click.option("--force", is_flag=True, help="Replace an artifact that is there.")
@click.option("--recipe", metavar="FILE", type=click.Path(path_type=Path), help="YAML with these settings; a flag beats it.")
@click.option("--target", metavar="NAME", help="What to compile for.  [default: ort-cpu]")
@click.option("--dtype", metavar="TYPE", help="Type of the weights.  [default: fp32]")
@click.option("--max-context", type=int, metavar="N", help="Most tokens of prompt and output together.  [default: the checkpoint's]")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a hub id.")
@click.option("--skip-attention", metavar="3,5,7", help="Layers whose attention a draft skips, counted from 0.")
@click.option("--skip-mlp", metavar="4,6", help="Layers whose MLP a draft skips.")
@click.option("--skip-set", metavar="FILE", type=click.Path(path_type=Path), help='JSON: {"attention": [3, 5], "mlp": [4]}.')
@click.option("--no-search", is_flag=True, help="Take a default skip set instead of searching one.")
@search_options
@debug_option
def command(
    model: str | None,
    out: Path,
    force: bool,
    recipe: Path | None,
    target: str | None,
    dtype: str | None,
    max_context: int | None,
    revision: str | None,
    skip_attention: str | None,
    skip_mlp: str | None,
    skip_set: Path | None,
    no_search: bool,
    options: SearchOptions,
) -> None:
    """Make an artifact from a checkpoint.

    Compares the result with the checkpoint, and plain with self-speculative decoding, before it gets its name. Unless a skip set is
    given, here or in the recipe, one is searched on this machine.
    """
    if skip_set is not None and (skip_attention is not None or skip_mlp is not None):
        raise click.UsageError("--skip-set excludes --skip-attention and --skip-mlp")
    if model is None and recipe is None:
        raise click.UsageError("Missing option '--model'")
    from sstool.cli.progress import status_line
    from sstool.pipelines.export import ExportRequest, export_artifact

    base = read_recipe_or_none(recipe)
    source = model if model is not None else base.model
    if source is None:
        raise click.UsageError("Missing option '--model': the recipe names no model")
    skip = _skip_spec(skip_attention, skip_mlp, skip_set) or (None if options.asks_for_search() else base.skip_set)
    is_searched = skip is None and not no_search
    if not is_searched and options.given():
        raise click.UsageError(f"{options.given()[0]} has no meaning where nothing is searched")
    starts = [spec.skip() for spec in (base.skip_set, base.warm_start) if spec is not None]
    with status_line() as say:
        artifact = export_artifact(
            ExportRequest(
                model=source,
                out=out,
                force=force,
                revision=revision if model is not None or revision is not None else base.revision,
                target=_first(target, base.target, ExportRequest.target),
                dtype=_first(dtype, base.dtype, ExportRequest.dtype),
                max_context=max_context if max_context is not None else base.max_context,
                skip=skip,
                search=options.settings(base) if is_searched else None,
                starts=tuple(starts),
                threads=options.threads,
                resume=options.resume,
                check=_depth_check(base, recipe),
                progress=say,
            )
        )
    click.echo(_summary(artifact, out))


def _depth_check(recipe: Recipe, path: Path | None) -> Callable[[int], None]:
    from sstool.pipelines.recipe import check_recipe_depth

    return lambda num_layers: check_recipe_depth(recipe, num_layers, where=str(path))


def _skip_spec(attention: str | None, mlp: str | None, file: Path | None) -> SkipSpec | None:
    from sstool.skip_set import SkipSpec, parse_layers, read_skip_file

    if file is not None:
        return read_skip_file(file)
    if attention is None and mlp is None:
        return None
    return SkipSpec(
        attention=parse_layers(attention or "", flag="--skip-attention"),
        mlp=parse_layers(mlp or "", flag="--skip-mlp"),
    )


def _first(flag: str | None, recipe: str | None, default: str) -> str:
    return flag if flag is not None else recipe if recipe is not None else default


def _summary(artifact: Artifact, out: Path) -> str:
    manifest = artifact.manifest
    model = manifest.model
    skipped = [f"{len(d.skip.attention) + len(d.skip.mlp)} of {2 * model.num_layers}" for d in manifest.drafts]
    draft = f", draft skips {' / '.join(skipped)} sublayers" if skipped else ""
    plainly = "; decodes plainly unless told" if any(d.mode == "plain" for d in manifest.drafts) else ""
    text = f"{out}: {model.family}, {model.num_parameters / 1e6:.1f} M parameters, {manifest.dtype}{draft}; the gate passed{plainly}"
    return text if manifest.tuning is None else f"{text}. {_found(manifest.tuning)}"


def _found(tuning: Tuning) -> str:
    speed = "" if tuning.speedup is None else f"{tuning.speedup:.2f} x plain, measured. "
    return f"{speed}{tuning.remark}"
