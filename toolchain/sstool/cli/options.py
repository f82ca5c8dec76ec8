"""Options that several commands share, the decoding options among them; their values are checked by the runtime alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sstool.cli.run_state import RunState

if TYPE_CHECKING:
    from ssruntime import Engine, GenerationConfig

F = TypeVar("F", bound=Callable[..., object])

# As in ssruntime.config, which is not imported here: it would slow `--help` down. A test holds them equal.
MODES: Final = ("plain", "speculative")
EXITS: Final = ("fixed", "confidence", "adaptive")
SAMPLINGS: Final = ("coupled", "rejection")


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(RunState).debug = True


debug_option: Final = click.option(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_set_debug, help="Show a traceback on errors."
)
"""The group and every command take it, so that it may stand before or after a command's name."""

json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _recover(_ctx: click.Context, _param: click.Parameter, value: Path) -> Path:
    from sstool.artifact_files.publish import recover

    recover(value)
    return value


artifact_argument: Final = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path), callback=_recover)
"""An artifact's folder. An exchange with a newer export that was cut short is undone before it is read."""


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """The decoding options as given, unchecked.

    Attributes:
        config: what the runtime's `GenerationConfig` takes; None where not given.
        threads: threads an engine uses, or None for the machine's physical cores.
        max_context: tokens of prompt and output together, or None for the default.
    """

    config: dict[str, Any]
    threads: int | None
    max_context: int | None

    def generation_config(self) -> GenerationConfig:
        """Returns the checked settings.

        Raises:
            ConfigError: if a value is out of its range.
        """
        from ssruntime import GenerationConfig

        return GenerationConfig(**self.config)

    def open_engine(self, folder: Path) -> Engine:
        """Loads an artifact for one request at a time; to be used in a `with` statement.

        Raises:
            ArtifactError: if the folder holds no whole artifact.
            ConfigError: if threads or context are out of range.
        """
        from ssruntime import load

        return load(folder, threads=self.threads, max_context=self.max_context, max_sequences=1)


_DECODING: Final = (
    click.option("--max-new-tokens", type=int, metavar="N", help="Most tokens to add.  [default: 128]"),
    click.option("--mode", type=click.Choice(MODES), help="Default: speculative, where the artifact has a draft."),
    click.option("--exit", type=click.Choice(EXITS), help="When a draft stops.  [default: as tuned, else adaptive]"),
    click.option(
        "--exit-threshold", type=float, metavar="X", help="Draft confidence, 0 to 1, below which it stops.  [default: as tuned, else 0.6]"
    ),
    click.option("--max-draft", type=int, metavar="K", help="Most tokens drafted in a round, 1 to 15.  [default: as tuned, else 12]"),
    click.option(
        "--max-alternatives",
        type=int,
        metavar="N",
        help="Most next-best tokens verified beside each drafted one, 0 to 3.  [default: as tuned, else 2]",
    ),
    click.option("--threads", type=int, metavar="T", help="Threads an engine uses.  [default: the physical cores at hand]"),
    click.option(
        "--max-context", type=int, metavar="N", help="Prompt and output together; costs memory.  [default: the artifact's, at most 4096]"
    ),
    click.option("--temperature", type=float, metavar="X", help="0 is greedy.  [default: as the checkpoint says, else greedy]"),
    click.option("--top-k", type=int, metavar="K", help="Sample from the K most probable tokens; 0 for all."),
    click.option("--top-p", type=float, metavar="P", help="Sample from the fewest tokens with this probability together."),
    click.option("--min-p", type=float, metavar="P", help="Sample from tokens at least this fraction as probable as the best."),
    click.option(
        "--sampling",
        type=click.Choice(SAMPLINGS),
        help="coupled: the text of plain sampling with this seed. rejection: the same distribution.  [default: coupled]",
    ),
    click.option("--seed", type=int, metavar="S", help="Gives the same text again.  [default: random]"),
    click.option("--stop", type=str, multiple=True, metavar="TEXT", help="End before this text; may be repeated."),
    click.option("--ignore-eos", is_flag=True, help="Go on past end-of-sequence tokens."),
)


def decoding_options(command: F) -> F:
    """Adds the decoding options to a command, which gets them as one `decoding: DecodingOptions`."""

    @functools.wraps(command)
    def gather(*args: object, threads: int | None, max_context: int | None, **rest: Any) -> object:
        config = {name: rest.pop(name) for name in list(rest) if name in _CONFIG_NAMES}
        return command(*args, decoding=DecodingOptions(config=config, threads=threads, max_context=max_context), **rest)

    decorated: Any = gather
    for option in reversed(_DECODING):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


_CONFIG_NAMES: Final = frozenset(
    (
        "max_new_tokens",
        "mode",
        "exit",
        "exit_threshold",
        "max_draft",
        "max_alternatives",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "sampling",
        "seed",
        "stop",
        "ignore_eos",
    )
)
