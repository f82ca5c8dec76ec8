"""The memory that a draft's own weights may take, as a user writes it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from ssruntime.errors import ConfigError

DEFAULT_WITH_SEARCH: Final = "5%"
NO_MEMORY: Final = "0"
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
