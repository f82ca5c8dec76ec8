"""Registries of the parts that can be added by name.

The names are values of settings: `mode` for proposers, `exit` for stopping rules, `sampling` for acceptance
rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Makers of parts, by name."""

    def __init__(self) -> None:
        self._makers: dict[str, T] = {}

    def register(self, name: str, make: T) -> None:
        """Adds a maker.

        Raises:
            ValueError: if the name is taken.
        """
        if name in self._makers:
            raise ValueError(f"{name!r} is registered already")
        self._makers[name] = make

    def remove(self, name: str) -> None:
        """Removes a maker."""
        del self._makers[name]

    def names(self) -> tuple[str, ...]:
        """Returns the names in the order in which they were registered."""
        return tuple(self._makers)

    def __getitem__(self, name: str) -> T:
        return self._makers[name]


PROPOSERS: Final[Registry[Callable[..., Any]]] = Registry()
"""`ssruntime.proposers.MakeProposer` by mode; that of mode `plain` returns None."""
STOPPING_RULES: Final[Registry[type[Any]]] = Registry()
"""Subclasses of `ssruntime.stopping.StoppingRule` by the name that the setting `exit` gives."""
ACCEPTANCE_RULES: Final[Registry[Callable[..., Any]]] = Registry()
"""`ssruntime.acceptance.MakeAcceptance` by the name that the setting `sampling` gives."""
