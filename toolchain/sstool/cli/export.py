"""`sstool export`: turns a checkpoint into an artifact, or leaves nothing at the artifact's path."""

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
    "--model", metavar="PATH_OR_HUB_ID", help="Folder of a Hugging Face checkpoint, or a hub id.  [required, here or in the recipe]"
)
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder of the artifact.")
@click.option("--force", is_flag=True, help="Replace an existing artifact.")
@click.option("--recipe", metavar="FILE", type=click.Path(path_type=Path), help="YAML file with these settings; flags override it.")
@click.option("--target", metavar="NAME", help="ort-cpu, ort-cuda or tensorrt.  [default: ort-cpu]")
@click.option("--dtype", metavar="TYPE", help="Data type of the weights.  [default: the checkpoint's, where the target has it]")
@click.option("--max-kl", type=float, metavar="X", help="int8, int4: largest mean KL divergence from fp32, in nats.  [default: 0.02]")
@click.option("--cpu", metavar="any|vnni", help="int8, int4: processors it is for.  [default: vnni where this machine has it]")
@click.option(
    "--draft-memory", metavar="0|5%|SIZE", help="Most memory of the draft's own weights, in int4.  [default: 5% with a search, else 0]"
)
@click.option("--block-size", type=int, metavar="32|64|128", help="int4: weights that share a scale.  [default: 32]")
@click.option("--max-context", type=int, metavar="N", help="Most tokens of prompt and output together.  [default: the checkpoint's]")
@click.option("--revision", metavar="R", help="Branch, tag or commit of a hub id.")
@click.option("--skip-attention", metavar="3,5,7", help="Layers whose attention the draft skips, counted from 0.")
@click.option("--skip-mlp", metavar="4,6", help="Layers whose MLP the draft skips, counted from 0.")
@click.option("--skip-set", metavar="FILE", type=click.Path(path_type=Path), help='JSON file: {"attention": [3, 5], "mlp": [4]}.')
@click.option("--no-search", is_flag=True, help="Use the default skip set instead of searching for one.")
@search_options
@debug_option
def command(
    model: str | None,
    out: Path,
    force: bool,
    recipe: Path | None,
    target: str | None,
    dtype: str | None,
    max_kl: float | None,
    cpu: str | None,
    block_size: int | None,
    draft_memory: str | None,
    max_context: int | None,
    revision: str | None,
    skip_attention: str | None,
    skip_mlp: str | None,
    skip_set: Path | None,
    no_search: bool,
    options: SearchOptions,
) -> None:
    """Make an artifact from a checkpoint.

    The artifact is published only if its logits agree with the checkpoint's and self-speculative decoding
    gives the same tokens as autoregressive decoding. Unless a skip set is given, by a flag or in the recipe,
    the command searches for one on this machine.
    """
    if skip_set is not None and (skip_attention is not None or skip_mlp is not None):
        raise click.UsageError("--skip-set excludes --skip-attention and --skip-mlp")
    if model is None and recipe is None:
        raise click.UsageError("Missing option '--model'")
    from ssruntime.artifact import QUANTIZED
    from sstool.cli.progress import status_line
    from sstool.pipelines.export import ExportRequest, export_artifact
    from sstool.quantize.options import QuantizationOptions

    base = read_recipe_or_none(recipe)
    source = model if model is not None else base.model
    if source is None:
        raise click.UsageError("Missing option '--model': the recipe names no model")
    skip = _skip_spec(skip_attention, skip_mlp, skip_set) or (None if options.asks_for_search() else base.skip_set)
    is_searched = skip is None and not no_search
    quantization = QuantizationOptions(
        max_kl=max_kl if max_kl is not None else base.max_kl,
        cpu=cpu if cpu is not None else base.cpu,
        block_size=block_size if block_size is not None else base.block_size,
        calibration=options.settings(base).calibration,
    )
    chosen = dtype if dtype is not None else base.dtype
    unused = [flag for flag in options.given() if flag != "--calibration" or chosen not in QUANTIZED]
    if not is_searched and unused:
        raise click.UsageError(f"{unused[0]} has no meaning without a search")
    starts = [spec for spec in (base.skip_set, base.warm_start) if spec is not None]
    with status_line() as say:
        artifact = export_artifact(
            ExportRequest(
                model=source,
                out=out,
                force=force,
                revision=revision if model is not None or revision is not None else base.revision,
                target=_first(target, base.target, ExportRequest.target),
                dtype=chosen,
                quantization=quantization,
                max_context=max_context if max_context is not None else base.max_context,
                skip=skip,
                draft_memory=draft_memory if draft_memory is not None or (skip is not None and skip.low_bit()) else base.draft_memory,
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
    if own := sum(manifest.files[name].size for d in manifest.drafts for name in d.weights):
        draft += f" and has {own / 2**20:.1f} MiB of weights in int4 ({own / manifest.weights_size:.1%} of the shared ones)"
    mode = "; the default mode is plain" if any(d.mode == "plain" for d in manifest.drafts) else ""
    text = f"{out}: {model.family}, {model.num_parameters / 1e6:.1f} M parameters, {manifest.dtype}{draft}; the gate passed{mode}"
    if (quality := manifest.gate.get("quality")) is not None:
        text += f"; mean KL divergence from fp32 {quality['mean_kl']:.2g}, same top token at {quality['top1_agreement']:.1%}"
    return text if manifest.tuning is None else f"{text}. {_search_result(manifest.tuning)}"


def _search_result(tuning: Tuning) -> str:
    from sstool.search.log.records import speeds_in_words

    speed = f"{speeds_in_words(tuning.speedups)}, measured. " if tuning.speedups else ""
    return f"{speed}{tuning.remark}"
