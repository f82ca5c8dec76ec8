"""The options of a search for a skip set, which `search` and `export` share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from sstool.pipelines.recipe import Recipe
    from sstool.search.settings import SearchSettings

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The search options as the user gave them.

    Attributes:
        changes: fields of `SearchSettings` that were given, with their values.
        threads: number of threads per engine; None for the default.
        resume: whether to resume an interrupted search.
    """

    changes: dict[str, Any]
    threads: int | None
    resume: bool

    def settings(self, recipe: Recipe) -> SearchSettings:
        """Returns the recipe's search settings, or the defaults, with the changes of the flags.

        Raises:
            ConfigError: if a value is out of its range.
        """
        from sstool.search.settings import SearchSettings

        return dataclasses.replace(recipe.search or SearchSettings(), **self.changes)

    def asks_for_search(self) -> bool:
        """Whether a search setting or `--resume` was given; `--threads` does not count.

        Export then searches even if the recipe has a skip set, and tries that set first.
        """
        return bool(self.changes) or self.resume

    def given(self) -> list[str]:
        """Returns the flags that were given."""
        flags = [*(f"--{name}" for name in self.changes), *(["--resume"] if self.resume else [])]
        return [*flags, *(["--threads"] if self.threads is not None else [])]


# Defaults are written out, as importing `SearchSettings` would slow `--help` down. A test holds them true.
_OPTIONS: Final = (
    click.option(
        "--calibration",
        metavar="FILE",
        type=click.Path(),
        help='Prompts to search with: JSON Lines file of {"prompt": ...}.  [default: 64 built-in prompts]',
    ),
    click.option("--trials", type=int, metavar="N", help="Most candidates to try.  [default: 80]"),
    click.option("--budget", metavar="TIME", help="Time limit, such as 90s, 10m or 1.5h.  [default: 10m]"),
    click.option("--seed", type=int, metavar="S", help="Seed of all random choices.  [default: 0]"),
    click.option("--threads", type=int, metavar="T", help="Threads per engine.  [default: the available physical cores]"),
    click.option("--resume", is_flag=True, help="Resume an interrupted search."),
)
_SETTINGS: Final = ("calibration", "trials", "budget", "seed")


def search_options(command: F) -> F:
    """Adds the search options to a command, which receives them as `options: SearchOptions`."""

    @functools.wraps(command)
    def gather(*args: object, threads: int | None, resume: bool, **rest: Any) -> object:
        given = {name: rest.pop(name) for name in _SETTINGS}
        changes = {name: value for name, value in given.items() if value is not None}
        return command(*args, options=SearchOptions(changes=changes, threads=threads, resume=resume), **rest)

    decorated: Any = gather
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def read_recipe_or_none(path: Path | None) -> Recipe:
    """Returns the recipe in a file, or an empty one if no file is given."""
    from sstool.pipelines.recipe import Recipe, read_recipe

    return Recipe() if path is None else read_recipe(path)
