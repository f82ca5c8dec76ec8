"""Every search setting has a default, and an invalid value is refused with a short message and a hint."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from typing import Any

import pytest

from ssruntime.errors import ConfigError
from ssruntime.strict_reader import read_record
from sstool.search.settings import SearchSettings, parse_budget

FIELDS = [field.name for field in dataclasses.fields(SearchSettings)]


def settings(**values: Any) -> SearchSettings:
    return read_record(SearchSettings, values, where="search", error=ConfigError)


def test_the_default_budget_is_ten_minutes_and_the_weights_sum_to_1() -> None:
    assert SearchSettings().budget_seconds == 600
    assert SearchSettings().sampled_weight + SearchSettings().greedy_weight == 1


def test_every_setting_is_documented() -> None:
    documented = re.findall(r"^    (\w+): ", inspect.getdoc(SearchSettings) or "", flags=re.MULTILINE)
    assert documented == FIELDS


def test_settings_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SearchSettings().trials = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        SearchSettings(3)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("1.5h", 5400),
        ("600", 600),
        ("0.5", 0.5),
        (".5m", 30),
        ("2.", 2),
        ("10M", 600),
        (" 10 m ", 600),
    ],
)
def test_a_budget_is_a_time(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds
    assert settings(budget=text).budget_seconds == seconds


@pytest.mark.parametrize("text", ["0", "0s", "0.0h", "." + "0" * 400 + "1", "9" * 400, "9" * 308 + "h"])
def test_a_budget_of_zero_or_infinite_seconds_is_refused(text: str) -> None:
    refused({"budget": text}, "budget is out of range")


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "-10m",
        "nan",
        "inf",
        "infinity",
        "",
        " ",
        "m",
        "ten minutes",
        "10min",
        "1h30m",
        "10 m s",
        "1e3",
        "1,5h",
        "\u0661\u0660m",
        "10d",
        ".",
    ],
)
def test_a_budget_that_is_not_a_time_is_refused(text: str) -> None:
    refused({"budget": text}, "is not a time")


def test_without_a_budget_the_time_is_unlimited() -> None:
    assert SearchSettings(budget=None).budget_seconds == math.inf


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("trials", 1, 10_000),
        ("batch", 1, 64),
        ("seed", 0, 2**63 - 1),
        ("sampled_tokens", 8, 1024),
        ("greedy_tokens", 8, 1024),
        ("finalists", 1, 32),
    ],
)
def test_a_count_may_be_at_both_ends_of_its_range_and_not_beyond(name: str, low: int, high: int) -> None:
    for value in (low, high):
        assert getattr(settings(**{name: value}), name) == value
    for value in (low - 1, high + 1, -(2**70)):
        refused({name: value}, f"{name} is out of range: {value}")


@pytest.mark.parametrize("name", ["sampled_weight", "greedy_weight"])
def test_a_weight_is_finite_and_not_negative(name: str) -> None:
    assert getattr(settings(**{name: 0}), name) == 0
    assert getattr(settings(**{name: 3}), name) == 3
    for value in (-0.1, math.inf, math.nan):
        refused({name: value}, f"{name} is out of range")


def test_both_weights_cannot_be_0() -> None:
    refused({"sampled_weight": 0, "greedy_weight": 0.0}, "both 0")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("temperature", (0.0, 2.0), (-0.1, math.inf, math.nan)),
        ("top_p", (0.01, 1.0), (0.0, 1.01, math.nan)),
    ],
)
def test_temperature_and_top_p_have_the_ranges_of_decoding(name: str, good: tuple[float, ...], bad: tuple[float, ...]) -> None:
    for value in good:
        assert getattr(settings(**{name: value}), name) == value
    for value in bad:
        refused({name: value}, f"{name} is out of range")


@pytest.mark.parametrize("name", ["", " ", "a\0b"])
def test_a_calibration_file_without_a_valid_name_is_refused(name: str) -> None:
    refused({"calibration": name}, "calibration names no file")


@pytest.mark.parametrize(
    "name", ["trials", "batch", "seed", "sampled_tokens", "greedy_tokens", "finalists", "sampled_weight", "greedy_weight"]
)
@pytest.mark.parametrize("value", ["3", True])
def test_a_value_of_another_type_is_refused_by_the_reader_and_the_constructor(name: str, value: object) -> None:
    refused({name: value}, f"{name}: expected")
    given: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=rf"{name} must be a (whole )?number"):
        SearchSettings(**given)


def refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**values)
    assert message in caught.value.message
    assert caught.value.hint
    assert len(str(caught.value)) < 1000
