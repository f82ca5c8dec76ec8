"""A setting outside its range is refused with its name, its value and the range."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from ssruntime.checks import check_choice, check_float, check_int
from ssruntime.errors import ConfigError


def refusal(caught: pytest.ExceptionInfo[ConfigError]) -> tuple[str, str]:
    return caught.value.message, caught.value.hint


def test_a_setting_that_is_not_given_passes() -> None:
    check_choice("mode", None, ["plain"])
    check_int("n", None, 1, 2)
    check_float("x", None, 1.0, 2.0)


@pytest.mark.parametrize("value", ["plain", "speculative"])
def test_a_choice_passes(value: str) -> None:
    check_choice("mode", value, ["plain", "speculative"])


@pytest.mark.parametrize(
    ("value", "hint"),
    [("speculativ", "did you mean 'speculative'?"), ("Plain", "did you mean 'plain'?"), ("xyz", "known: plain, speculative"), ("", None)],
)
def test_another_choice_is_refused_and_the_closest_is_named(value: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        check_choice("mode", value, ["plain", "speculative"])
    message, found = refusal(caught)
    assert message == f"mode must be one of plain, speculative, found {value!r}"
    assert hint is None or found == hint


@pytest.mark.parametrize(("value", "low", "high"), [(1, 1, 3), (3, 1, 3), (-5, -5, None), (2**63 - 1, 0, 2**63 - 1), (10**30, 0, None)])
def test_a_whole_number_within_its_range_passes(value: int, low: int, high: int | None) -> None:
    check_int("n", value, low, high)


@pytest.mark.parametrize("value", [True, False, 1.0, "1", [1], np.float64(1), math.nan])
def test_another_type_than_a_whole_number_is_refused(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_int("n", value, 0, 5)
    assert refusal(caught) == (f"n must be a whole number, found {value!r}", "0 or more, at most 5")


@pytest.mark.parametrize(
    ("value", "low", "high", "hint"),
    [
        (0, 1, None, "1 or more"),
        (0, 1, 3, "1 or more, at most 3"),
        (4, 1, 3, "1 or more, at most 3"),
        (-1, 0, 2**63 - 1, "0 or more, at most 9223372036854775807"),
    ],
)
def test_a_whole_number_outside_its_range_is_refused(value: int, low: int, high: int | None, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_int("n", value, low, high)
    assert refusal(caught) == (f"n is out of range: {value}", hint)


@pytest.mark.parametrize(
    ("value", "low", "high", "above"),
    [
        (0, 0.0, 1.0, False),
        (1, 0.0, 1.0, True),
        (1e-300, 0.0, 1.0, True),
        (sys.float_info.max, 0.0, None, False),
        (np.float64(0.5), 0.0, 1.0, False),
    ],
)
def test_a_number_within_its_range_passes(value: float, low: float, high: float | None, above: bool) -> None:
    check_float("x", value, low, high, above=above)


@pytest.mark.parametrize("value", [True, "0.5", [0.5], 1j])
def test_another_type_than_a_number_is_refused(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        check_float("x", value, 0.0)
    assert refusal(caught) == (f"x must be a number, found {value!r}", "0 or more")


@pytest.mark.parametrize(
    ("value", "low", "high", "above", "hint"),
    [
        (-0.1, 0.0, None, False, "0 or more"),
        (0.0, 0.0, 1.0, True, "above 0, at most 1"),
        (1.5, 0.25, 1.0, False, "0.25 or more, at most 1"),
        (math.inf, 0.0, None, False, "0 or more, and finite"),
        (-math.inf, 0.0, None, False, "0 or more, and finite"),
        (math.nan, 0.0, 1.0, False, "0 or more, at most 1, and finite"),
        (10**400, 0.0, None, False, "0 or more"),
    ],
)
def test_a_number_outside_its_range_is_refused(value: float, low: float, high: float | None, above: bool, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_float("x", value, low, high, above=above)
    assert refusal(caught) == (f"x is out of range: {value}", hint)
