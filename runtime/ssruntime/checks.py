"""Range checks for settings: a value outside its range is a `ConfigError` whose hint states the range."""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Collection

from ssruntime.errors import ConfigError, did_you_mean


def check_choice(name: str, value: str | None, choices: Collection[str]) -> None:
    """Accepts one of the choices, or None for a setting that is not given.

    Raises:
        ConfigError: for anything else; the hint names the closest choice.
    """
    if value is not None and value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, found {value!r}", did_you_mean(value, choices))


def check_int(name: str, value: object, low: int, high: int | None = None) -> int | None:
    """Returns a whole number from `low` to `high` inclusive, as Python's; None if none is given.

    Raises:
        ConfigError: for another type (a boolean included) or a number outside the range.
    """
    if value is None:
        return None
    # `numbers` knows numpy's numbers too.
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ConfigError(f"{name} must be a whole number, found {value!r}", _range_hint(low, high))
    number = int(value)
    if number < low or (high is not None and number > high):
        raise ConfigError(f"{name} is out of range: {number}", _range_hint(low, high))
    return number


def check_float(name: str, value: object, low: float, high: float | None = None, *, above: bool = False) -> float | None:
    """Returns a finite number from `low` to `high` inclusive, as Python's; None if none is given.

    Args:
        name: the setting's name, for error messages.
        value: the setting's value.
        low: least allowed value.
        high: greatest allowed value; None allows every finite number.
        above: whether `low` itself is excluded.

    Raises:
        ConfigError: for another type (a boolean included), NaN, infinity, or a number outside the range.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f"{name} must be a number, found {value!r}", _range_hint(low, high))
    number: float = int(value) if isinstance(value, numbers.Integral) else float(value)
    top = sys.float_info.max if high is None else high
    if not low <= number <= top or (above and number == low):  # NaN is in no range
        hint = _range_hint(low, high, above=above)
        is_infinite = number in (math.inf, -math.inf) or number != number
        raise ConfigError(f"{name} is out of range: {number}", f"{hint}, and finite" if is_infinite else hint)
    return number


def _range_hint(low: float, high: float | None, *, above: bool = False) -> str:
    start = f"above {_number(low)}" if above else f"{_number(low)} or more"
    return start if high is None else f"{start}, at most {_number(high)}"


def _number(value: float) -> str:
    # Whole numbers in full: the limit of a seed has 19 digits.
    return str(int(value)) if value == int(value) else f"{value:g}"
