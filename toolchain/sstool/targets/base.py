"""What an export and a search need to know about a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from ssruntime.errors import ConfigError

FIXED_CONTEXT: Final = 4096
"""Usual number of positions where the graph fixes it, as a load's own default."""


@dataclass(frozen=True, kw_only=True)
class GraphTarget:
    """A target that graphs are finished for.

    Attributes:
        name: its name, as in the manifest and `--target`.
        dtypes: data types of weights and computation.
        finish: called with a graph of the graph contract, whole or a draft, and the number of positions of a
            sequence; returns the graph that the target's engines run. The graph may be changed in place.
        keeps_base: whether the engines run other graphs than drafts are made from, so that an artifact holds
            both.
        has_step: whether a graph of its own runs passes of one token.
        usual_context: most positions of a sequence unless the user asks for another number; None takes the
            checkpoint's. The KV cache of a graph with a fixed capacity takes memory for all of them.
    """

    name: str
    dtypes: tuple[str, ...]
    finish: Callable[[ir.Model, int], ir.Model]
    keeps_base: bool
    has_step: bool
    usual_context: int | None

    def chosen_dtype(self, asked: str | None, checkpoint_dtype: str) -> str:
        """Returns the data type of an export: the asked one, or the checkpoint's own where the target has it.

        Args:
            asked: data type that the user asks for; None for the default.
            checkpoint_dtype: data type of the checkpoint's weights.

        Raises:
            ConfigError: if the target does not run the asked one.
        """
        if asked is None:
            return checkpoint_dtype if checkpoint_dtype in self.dtypes else self.dtypes[0]
        if asked not in self.dtypes:
            raise ConfigError(f"dtype: target {self.name} runs {', '.join(self.dtypes)}, not {asked!r}", f"--dtype {self.dtypes[0]}")
        return asked
