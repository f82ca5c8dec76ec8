"""Options that several commands share, such as the decoding options; only the runtime checks their values."""

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

# Repeated from ssruntime.config, whose import would slow `--help` down. A test keeps both equal.
MODES: Final = ("plain", "speculative", "ngram", "auto")
EXITS: Final = ("fixed", "confidence", "adaptive", "optimal")
SAMPLINGS: Final = ("coupled", "rejection")


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(RunState).debug = True


debug_option: Final = click.option(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_set_debug, help="Show a traceback on errors."
)
"""The group and every command have this option, so that it works before and after the name of a command."""

json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _recover(_ctx: click.Context, _param: click.Parameter, value: Path) -> Path:
    from sstool.artifact_files.publish import recover

    recover(value)
    return value


artifact_argument: Final = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path), callback=_recover)
"""The folder of an artifact, repaired before it is read if an export was killed while replacing it."""


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """The decoding options as the user gave them, not checked yet.

    Attributes:
        config: arguments of the runtime's `GenerationConfig`; None for an option that was not given.
        threads: number of threads per engine; None for the physical cores that are available.
        max_context: largest number of tokens of prompt and output together; None for the default.
        bit_exact: whether passes of one token have the bits of wider passes.
        on_cpu: whether the graphs of a target for GPUs run on the processor.
        bake_weights: whether each engine of TensorRT holds weights of its own.
    """

    config: dict[str, Any]
    threads: int | None
    max_context: int | None
    bit_exact: bool
    on_cpu: bool
    bake_weights: bool

    def generation_config(self) -> GenerationConfig:
        """Returns the checked settings.

        Raises:
            ConfigError: if a value is out of its range.
        """
        from ssruntime import GenerationConfig

        return GenerationConfig(**self.config)

    def open_engine(self, folder: Path, *, prefix_cache: int | None = None) -> Engine:
        """Returns an engine for one request at a time, to be used in a `with` statement.

        Args:
            folder: folder of the artifact.
            prefix_cache: as in `load`.

        Raises:
            ArtifactError: if the folder holds no complete artifact.
            ConfigError: if `threads` or `max_context` is out of its range.
        """
        from ssruntime import load

        return load(
            folder,
            threads=self.threads,
            max_context=self.max_context,
            max_sequences=1,
            prefix_cache=prefix_cache,
            bit_exact=self.bit_exact,
            on_cpu=self.on_cpu,
            bake_weights=self.bake_weights,
        )


_DECODING: Final = (
    click.option("--max-new-tokens", type=int, metavar="N", help="Most tokens to generate.  [default: the checkpoint's setting, else 128]"),
    click.option(
        "--mode",
        type=click.Choice(MODES),
        help="plain: autoregressive decoding. speculative: the draft engine drafts. ngram: looks tokens up in the prompt and the output."
        " auto: in each round whatever is expected to be fastest.  [default: the artifact's]",
    ),
    click.option("--exit", type=click.Choice(EXITS), help="Stopping rule of the draft.  [default: as tuned, else optimal]"),
    click.option(
        "--exit-threshold",
        type=float,
        metavar="X",
        help="Draft confidence, 0 to 1, below which drafting stops.  [default: as tuned, else 0.6]",
    ),
    click.option("--max-draft", type=int, metavar="K", help="Most tokens drafted in a round, 1 to 15.  [default: as tuned, else 12]"),
    click.option(
        "--max-alternatives",
        type=int,
        metavar="N",
        help="Most alternatives (one-token side branches) verified beside each drafted token, 0 to 3.  [default: as tuned,"
        " else 2, or 0 in int8 and int4]",
    ),
    click.option("--threads", type=int, metavar="T", help="Threads per engine.  [default: the available physical cores]"),
    click.option(
        "--max-context",
        type=int,
        metavar="N",
        help="Most tokens of prompt and output together; takes memory.  [default: the artifact's, at most 4096]",
    ),
    click.option(
        "--temperature",
        type=float,
        metavar="X",
        help="0 is greedy.  [default: 0; where the checkpoint or another option samples, the checkpoint's, else 1]",
    ),
    click.option("--top-k", type=int, metavar="K", help="Sample from the K most probable tokens; 0 for all."),
    click.option("--top-p", type=float, metavar="P", help="Sample from the smallest set of tokens with this total probability."),
    click.option(
        "--min-p", type=float, metavar="P", help="Sample from tokens at least this fraction as probable as the most probable one."
    ),
    click.option(
        "--sampling",
        type=click.Choice(SAMPLINGS),
        help="coupled: same text as autoregressive sampling with this seed. rejection: same distribution.  [default: coupled]",
    ),
    click.option("--seed", type=int, metavar="S", help="Seed of the sampling; the same seed gives the same text.  [default: random]"),
    click.option("--stop", type=str, multiple=True, metavar="TEXT", help="End the output before this text; may be repeated."),
    click.option(
        "--stop-token-id",
        "stop_token_ids",
        type=int,
        multiple=True,
        metavar="ID",
        help="End the output after this token; may be repeated.",
    ),
    click.option("--min-new-tokens", type=int, metavar="N", help="Generate no token that ends the output before the N-th."),
    click.option(
        "--keep-special-tokens",
        "skip_special_tokens",
        is_flag=True,
        flag_value=False,
        default=True,
        help="Include special tokens in the output, as tool calls need.",
    ),
    click.option("--bake-weights", is_flag=True, help="TensorRT: build engines that hold weights of their own."),
    click.option("--on-cpu", is_flag=True, help="Run the graphs of a target for GPUs on the processor, slowly, to check them."),
    click.option(
        "--no-bit-exact",
        is_flag=True,
        help="In passes of one token, use the single-row kernel: plain can be faster; near ties may be decided differently.",
    ),
    click.option("--ignore-eos", is_flag=True, help="Continue after end-of-sequence tokens."),
    click.option(
        "--deterministic",
        is_flag=True,
        help="Draft by nothing that is measured or learned here: with --sampling rejection, a seed then gives one text.",
    ),
)


def decoding_options(command: F) -> F:
    """Adds the decoding options to a command, which receives them as `decoding: DecodingOptions`."""

    @functools.wraps(command)
    def gather(*args: object, **rest: Any) -> object:
        config = {name: rest.pop(name) for name in list(rest) if name in _CONFIG_NAMES}
        decoding = DecodingOptions(
            config=config,
            threads=rest.pop("threads"),
            max_context=rest.pop("max_context"),
            bit_exact=not rest.pop("no_bit_exact"),
            on_cpu=rest.pop("on_cpu"),
            bake_weights=rest.pop("bake_weights"),
        )
        return command(*args, decoding=decoding, **rest)

    decorated: Any = gather
    for option in reversed(_DECODING):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


_CONFIG_NAMES: Final = frozenset(
    (
        "max_new_tokens",
        "min_new_tokens",
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
        "stop_token_ids",
        "ignore_eos",
        "skip_special_tokens",
        "deterministic",
    )
)
