"""`sstool export`: a checkpoint in, an artifact out, or nothing under the artifact's name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sstool.cli.options import debug_option

if TYPE_CHECKING:
    from ssruntime.artifact import Artifact
    from sstool.recipe import Recipe
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
) -> None:
    """Make an artifact from a checkpoint.

    Compares the result with the checkpoint, and plain with self-speculative decoding, before it gets its name. Without a skip set, a
    default one is taken.
    """
    if skip_set is not None and (skip_attention is not None or skip_mlp is not None):
        raise click.UsageError("--skip-set excludes --skip-attention and --skip-mlp")
    if model is None and recipe is None:
        raise click.UsageError("Missing option '--model'")
    from sstool.cli.progress import status_line
    from sstool.export import ExportRequest, export_artifact

    base = _recipe(recipe)
    source = model if model is not None else base.model
    if source is None:
        raise click.UsageError("Missing option '--model': the recipe names no model")
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
                skip=_skip_spec(skip_attention, skip_mlp, skip_set) or base.skip_set,
                progress=say,
            )
        )
    click.echo(_summary(artifact, out))


def _recipe(path: Path | None) -> Recipe:
    from sstool.recipe import Recipe, read_recipe

    return Recipe() if path is None else read_recipe(path)


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
    return f"{out}: {model.family}, {model.num_parameters / 1e6:.1f} M parameters, {manifest.dtype}{draft}; the gate passed"
