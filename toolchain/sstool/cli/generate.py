"""`sstool generate`: streams text, or prints a JSON object per prompt; a bad prompt does not stop a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sstool.cli.chat_options import ChatOptions, chat_options
from sstool.cli.main import EXIT_FAILED, format_error
from sstool.cli.options import DecodingOptions, artifact_argument, debug_option, decoding_options, json_option

if TYPE_CHECKING:
    from ssruntime import DecodeStats, Engine, GenerationConfig, Prompt
    from sstool.prompts import PromptRecord


@click.command(name="generate")
@artifact_argument
@click.option("--prompt", metavar="TEXT", help="Text to continue, without a chat template.")
@click.option(
    "--prompts",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help='JSON Lines file of {"id"?, "prompt"} or {"id"?, "messages", "tools"?, "variables"?}; - reads standard input.',
)
@chat_options
@decoding_options
@json_option
@debug_option
def command(folder: Path, prompt: str | None, prompts: Path | None, chats: ChatOptions, decoding: DecodingOptions, as_json: bool) -> None:
    """Complete a prompt, or a file of prompts."""
    if (prompt is None) == (prompts is None):
        raise click.UsageError("give one of --prompt and --prompts" if prompt is None else "--prompt and --prompts exclude each other")
    config = decoding.generation_config()
    records = chats.apply(_records(prompt, prompts))
    with decoding.open_engine(folder) as engine:
        # One seed for the whole run, drawn here if none is given, so that the printed seed repeats the run.
        config = dataclasses.replace(config, seed=engine.settings(config).seed)
        if prompts is None:
            _run_one(engine, records[0], config, as_json=as_json)
        elif not _run_file(engine, records, config, as_json=as_json):
            click.get_current_context().exit(EXIT_FAILED)


def _records(prompt: str | None, prompts: Path | None) -> list[PromptRecord]:
    from sstool.prompts import PromptRecord, check_text, read_prompts

    if prompts is not None:
        return read_prompts(prompts)
    return [PromptRecord(id="0", prompt=check_text(prompt or "", where="--prompt"), index=0)]


def _run_file(engine: Engine, records: list[PromptRecord], config: GenerationConfig, *, as_json: bool) -> bool:
    """Runs the prompts that can be run; returns whether all of them could."""
    from ssruntime.errors import PromptError
    from sstool.cli.progress import progress_bar

    complete = True
    with progress_bar("generate", shown=as_json) as advance:
        for record in records:
            advance(record.index, len(records), record.id)
            try:
                if not as_json:
                    click.secho(f"--- {record.id}", bold=True)
                _run_one(engine, record, config, as_json=as_json)
            except PromptError as err:
                complete = False
                if as_json:
                    _print_json({"id": record.id, "error": {"type": type(err).__name__, "message": err.message, "hint": err.hint}})
                else:
                    click.echo(format_error(f"prompt {record.id}: {err.message}", err.hint), err=True)
    return complete


def _run_one(engine: Engine, record: PromptRecord, config: GenerationConfig, *, as_json: bool) -> None:
    from ssruntime.sampling.noise import prompt_seed
    from ssruntime.text.prompt import Chat

    prompt = record.prompt
    seed = config.seed or 0
    own = dataclasses.replace(config, seed=prompt_seed(seed, record.index))
    if not as_json:
        _stream(engine, prompt, own, seed)
        return
    done = engine.generate(prompt, own)
    _print_json(
        {
            "id": record.id,
            "prompt": prompt.messages if isinstance(prompt, Chat) else prompt,
            "text": done.text,
            "token_ids": done.token_ids,
            "finish_reason": done.finish_reason,
            "seed": seed,
            "stats": done.stats.to_json(),
        }
    )


def _stream(engine: Engine, prompt: Prompt, config: GenerationConfig, seed: int) -> None:
    for chunk in engine.stream(prompt, config):
        click.echo(chunk.text, nl=False)
        if chunk.stats is not None:
            click.echo()
            click.secho(", ".join(_summary(chunk.stats, chunk.finish_reason or "", seed)), err=True, dim=True)


def _summary(stats: DecodeStats, finish_reason: str, seed: int) -> Iterator[str]:
    yield f"{1 + stats.emitted - stats.discarded} tokens ({finish_reason})"
    speed = stats.tokens_per_second()
    if speed is not None:
        yield f"{speed:.1f} tokens/s"
    if stats.proposed:
        yield f"acceptance {stats.accepted / stats.proposed:.2f}"
    if stats.rounds:
        yield f"{stats.emitted / stats.rounds:.2f} tokens per round"
    yield f"seed {seed}"


def _print_json(data: dict[str, object]) -> None:
    click.echo(json.dumps(data))
