"""`sstool search`: finds the draft of an artifact or of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sstool.cli.options import debug_option
from sstool.cli.search_options import SearchOptions, read_recipe_or_none, search_options

if TYPE_CHECKING:
    from sstool.search.run import SearchOutcome


@click.command(name="search")
@click.option("--model", metavar="PATH_OR_HUB_ID", help="Checkpoint to search for; needs --out.")
@click.option("--artifact", metavar="DIR", type=click.Path(path_type=Path), help="Artifact to search for; it gets the new draft.")
@click.option("--recipe", metavar="FILE", type=click.Path(path_type=Path), help="YAML file with these settings; flags override it.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Folder for skip_set.json and the records of the search.")
@click.option("--force", is_flag=True, help="Replace the records of an earlier search.")
@click.option("--draft-memory", metavar="0|5%|SIZE", help="Most memory of the draft's own weights, in int4.  [default: 5%]")
@search_options
@debug_option
def command(
    model: str | None,
    artifact: Path | None,
    recipe: Path | None,
    out: Path | None,
    force: bool,
    draft_memory: str | None,
    options: SearchOptions,
) -> None:
    """Find the draft: what it skips, and what it copies in int4.

    Runs candidates in real engines on text that the model itself generated, and times the best ones head to
    head. An artifact gets the winner as its new draft. With --out, the skip set is written there instead, for
    `sstool export --skip-set`.
    """
    if model is not None and artifact is not None:
        raise click.UsageError("--model and --artifact exclude each other")
    from sstool.cli.progress import status_line
    from sstool.pipelines.search import SearchTarget, search_for

    base = read_recipe_or_none(recipe)
    source = model if model is not None else base.model
    if artifact is None and source is None:
        raise click.UsageError("Missing option '--model' or '--artifact'")
    if artifact is None and out is None:
        raise click.UsageError("Missing option '--out': the results of a search for a checkpoint need a folder")
    with status_line() as say:
        outcome = search_for(
            SearchTarget(
                model=None if artifact is not None else source,
                artifact=artifact,
                out=out,
                force=force,
                recipe=base,
                recipe_name="recipe" if recipe is None else str(recipe),
                settings=options.settings(base),
                draft_memory=draft_memory if draft_memory is not None else base.draft_memory,
                threads=options.threads,
                resume=options.resume,
                progress=say,
            )
        )
    hint = "" if out is None else f" Next: sstool export --skip-set {out / 'skip_set.json'}"
    click.echo(_summary(outcome, out if out is not None else artifact, hint))


def _summary(outcome: SearchOutcome, where: Path | None, hint: str) -> str:
    from sstool.search.log.records import speeds_in_words

    seconds = outcome.result.seconds
    spent = f"{outcome.num_trials} trials in {seconds['total']:.0f} s ({seconds.get('candidates', 0):.0f} s candidates"
    spent += f", {seconds.get('ax', 0):.0f} s Ax)"
    trial = outcome.winner
    if trial is None:
        return f"{where}: {outcome.result.remark} The default mode is plain. {spent}"
    skipped = f"{len(trial.skip.attention)} attention and {len(trial.skip.mlp)} MLP sublayers skipped"
    count, head = len(trial.int4.attention) + len(trial.int4.mlp), " and the LM head" if trial.int4.head else ""
    own = f", {count}{head} in int4" if trial.int4 else ""
    return f"{where}: {speeds_in_words(outcome.result.by_kind)}; {skipped}{own}; {spent}. {outcome.result.remark}{hint}"
