"""The memory that a draft's own weights may take, as a user writes it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from ssruntime.artifact import Manifest
from ssruntime.errors import ConfigError

DEFAULT_WITH_SEARCH: Final = "5%"
NO_MEMORY: Final = "0"
_CAN_HAVE: Final = ("ort-cpu", "fp32")
"""Target and data type whose drafts may have int4 weights."""
_UNITS: Final = {"%": 0.01, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_FORM: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z%]*)")
_HINT: Final = "write 0, a percentage of the weights such as 5%, or a size such as 200MB"


@dataclass(frozen=True, kw_only=True)
class DraftMemory:
    """The most memory that a draft's own weights may take: a fraction of the shared weights, or bytes."""

    fraction: float = 0.0
    size: float = 0.0

    @classmethod
    def parse(cls, text: str) -> DraftMemory:
        """Returns the memory that a text such as `0`, `5%` or `200MB` names.

        Raises:
            ConfigError: if the text is none of these.
        """
        found = _FORM.fullmatch(text.strip())
        number, unit = (float(found[1]), found[2]) if found is not None else (math.nan, "")
        if number == 0 and unit in ("", *_UNITS):
            return cls()
        if unit not in _UNITS or not math.isfinite(number):
            raise ConfigError(f"draft memory {text!r} is neither a percentage nor a size", _HINT)
        return cls(fraction=number * _UNITS[unit]) if unit == "%" else cls(size=number * _UNITS[unit])

    def __bool__(self) -> bool:
        return self.fraction > 0 or self.size > 0

    def bytes_beside(self, weights: int) -> float:
        """Returns the limit in bytes, for shared weights of `weights` bytes."""
        return self.fraction * weights + self.size


def check_own_weights(
    target: str, dtype: str, hint: str = "leave out --draft-memory and the skip set's int4 parts, or pass --target ort-cpu --dtype fp32"
) -> None:
    """Checks that the drafts of a target and a data type may have int4 weights of their own.

    Args:
        target: the target.
        dtype: the data type.
        hint: what to do if they may not.

    Raises:
        ConfigError: if they may not.
    """
    if (target, dtype) != _CAN_HAVE:
        raise ConfigError(f"int4 draft weights are not available for {target} in {dtype}, only for {' in '.join(_CAN_HAVE)}", hint)


def searched_memory(manifest: Manifest, asked: str | None) -> int:
    """Returns the most bytes of int4 weights that a draft may have in a search for an artifact.

    Args:
        manifest: manifest of the artifact.
        asked: memory that the user asks for; None for the default, which is 0 where drafts may have no own
            weights.

    Raises:
        ConfigError: if the text names no memory, or drafts of this artifact may have no own weights.
    """
    if asked is None and (manifest.target, manifest.dtype) != _CAN_HAVE:
        return 0
    memory = DraftMemory.parse(DEFAULT_WITH_SEARCH if asked is None else asked)
    if memory:
        hint = f"leave out --draft-memory, or export the model for {' in '.join(_CAN_HAVE)}"
        check_own_weights(manifest.target, manifest.dtype, hint)
    return int(memory.bytes_beside(manifest.weights_size))
