"""Settings are checked and completed in order; unknown or out-of-range ones are refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssruntime import ArtifactError, ConfigError, GenerationConfig
from ssruntime.artifact import DraftEntry, SkipSet
from ssruntime.config import DEFAULT_MAX_ALTERNATIVES, CheckpointDefaults, complete, read_generation_config
from ssruntime.errors import SelfSpecError, did_you_mean
from ssruntime.stopping import FixedRule, OptimalRule
from ssruntime.strict_reader import read_record

NAN, INFINITY = math.nan, math.inf
NUMBERS: dict[str, tuple[list[Any], list[Any]]] = {
    # setting: accepted, refused
    "max_new_tokens": ([1, 2, 10**9], [0, -1, 1.0, "1", True, NAN]),
    "max_draft": ([1, 15], [0, 16, -1, 2.0, True]),
    "top_k": ([0, 1, 10**9], [-1, 1.5, "5", True, NAN]),
    "seed": ([0, 1, 2**63 - 1], [-1, 2**63, 1.0, True]),
    "exit_threshold": ([0, 0.0, 0.6, 1, 1.0], [-1e-9, 1.0001, NAN, INFINITY, "0.5", True, 10**400]),
    "temperature": ([0, 0.0, 5e-324, 0.8, 2, 1e300], [-0.1, NAN, INFINITY, -INFINITY, "1", False, 10**400]),
    "top_p": ([5e-324, 0.5, 1, 1.0], [0, 0.0, -0.1, 1.0001, NAN, INFINITY, True]),
    "min_p": ([0, 0.0, 0.5, 1], [-0.1, 1.1, NAN, INFINITY]),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, (good, _) in NUMBERS.items() for v in good], ids=lambda v: str(v)[:12])
def test_values_in_range_are_accepted(name: str, value: Any) -> None:
    assert getattr(GenerationConfig(**{name: value}), name) == value
    assert getattr(GenerationConfig.from_mapping({name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, (_, bad) in NUMBERS.items() for v in bad], ids=lambda v: str(v)[:12])
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        GenerationConfig(**{name: value})
    with pytest.raises(ConfigError, match=name) as caught:
        GenerationConfig.from_mapping({name: value})
    assert "\n" not in str(caught.value)


def test_the_hint_names_the_range() -> None:
    with pytest.raises(ConfigError, match=r"max_draft is out of range: 16 \(1 or more, at most 15\)"):
        GenerationConfig(max_draft=16)
    with pytest.raises(ConfigError, match=r"top_p is out of range: 0 \(above 0, at most 1\)"):
        GenerationConfig(top_p=0)
    with pytest.raises(ConfigError, match=r"seed is out of range: -1 \(0 or more, at most 9223372036854775807\)"):
        GenerationConfig(seed=-1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mode": "speculativ"}, "did you mean 'speculative'"),
        ({"exit": "adaptve"}, "did you mean 'adaptive'"),
        ({"sampling": "rejecton"}, "did you mean 'rejection'"),
        ({"mode": "zzz"}, "known: auto, ngram, plain, speculative"),
        ({"mode": 3}, "mode: expected str, found int 3"),
        ({"temprature": 1.0}, "unknown key 'temprature'.*did you mean 'temperature'"),
        ({"topp": 1.0}, "did you mean 'top_p'"),
        ({"qqq": 1.0}, "unknown key 'qqq'.*known: deterministic, exit, exit_threshold"),
        ({"stop": "END"}, "stop: expected a list, found str 'END'"),
        ({"stop": [""]}, "stop must be a list of non-empty strings"),
        ({"stop": [5]}, r"stop\[0\]: expected str, found int 5"),
        ({"ignore_eos": 1}, "ignore_eos: expected bool, found int 1"),
        ({"ignore_eos": "yes"}, "ignore_eos: expected bool"),
        ({"exit": "fixed", "exit_threshold": 0.5}, "no meaning with exit 'fixed'"),
        ([], "expected an object with keys, found list"),
        ({1: 2}, "unknown key 1"),
    ],
)
def test_wrong_settings_are_refused_by_name(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerationConfig.from_mapping(data)


def test_a_single_string_is_refused_as_a_list_of_stop_strings() -> None:
    with pytest.raises(ConfigError, match="stop must be a list"):
        GenerationConfig(stop="END")  # type: ignore[arg-type]
    assert GenerationConfig.from_mapping({"stop": ["a", "b"]}).stop == ("a", "b")


def test_none_means_not_set() -> None:
    assert (
        GenerationConfig.from_mapping({f.name: None for f in dataclasses.fields(GenerationConfig) if f.default is None})
        == GenerationConfig()
    )


def test_quantized_weights_have_no_alternatives_unless_asked_for() -> None:
    usual, quantized = (complete(GenerationConfig(), CheckpointDefaults(), None, margin) for margin in (1e-4, math.inf))
    assert (usual.max_alternatives, quantized.max_alternatives) == (DEFAULT_MAX_ALTERNATIVES, 0)
    assert complete(GenerationConfig(max_alternatives=3), CheckpointDefaults(), None, math.inf).max_alternatives == 3


def test_unset_settings_get_their_defaults() -> None:
    draft = DraftEntry(name="draft", graph="draft.onnx", dtype="fp32", skip=SkipSet(mlp=(1,)))
    done = complete(GenerationConfig(), CheckpointDefaults(), draft)
    assert dataclasses.replace(done, seed=0) == complete(GenerationConfig(seed=0), CheckpointDefaults(), draft)
    assert (done.max_new_tokens, done.mode) == (128, "auto")
    assert done.stopping == OptimalRule(max_draft=12)
    assert (done.temperature, done.top_k, done.top_p, done.min_p, done.sampling) == (0.0, 0, 1.0, 0.0, "coupled")
    assert done.is_greedy
    assert complete(GenerationConfig(), CheckpointDefaults(), None).mode == "plain"
    for named in (GenerationConfig(exit="adaptive"), GenerationConfig(exit="confidence", exit_threshold=0.3)):
        assert complete(named, CheckpointDefaults(), draft).mode == "speculative"
    tuned = dataclasses.replace(draft, stopping=FixedRule(max_draft=3))
    assert complete(GenerationConfig(), CheckpointDefaults(), tuned).mode == "speculative"
    assert complete(GenerationConfig(exit="optimal"), CheckpointDefaults(), tuned).mode == "auto"
    seeds = {complete(GenerationConfig(), CheckpointDefaults(), None).seed for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= s < 2**63 for s in seeds)


CHECKPOINT = CheckpointDefaults(
    eos_token_ids=frozenset({1, 2}), do_sample=True, temperature=0.7, top_k=40, top_p=0.9, min_p=0.02, max_new_tokens=33
)


def test_the_checkpoint_overrides_defaults_and_a_flag_overrides_the_checkpoint() -> None:
    done = complete(GenerationConfig(), CHECKPOINT, None)
    assert (done.temperature, done.top_k, done.top_p, done.min_p, done.max_new_tokens) == (0.7, 40, 0.9, 0.02, 33)
    assert done.eos_token_ids == {1, 2}
    flags = GenerationConfig(temperature=1.2, top_k=0, top_p=1.0, min_p=0.0, max_new_tokens=5, ignore_eos=True)
    done = complete(flags, CHECKPOINT, None)
    assert (done.temperature, done.top_k, done.top_p, done.min_p, done.max_new_tokens) == (1.2, 0, 1.0, 0.0, 5)
    assert done.eos_token_ids == frozenset()


@pytest.mark.parametrize(
    ("flags", "do_sample", "stored", "expected"),
    [
        # Greedy if and only if the temperature is 0, or the checkpoint does not sample and no sampling flag
        # is given.
        ({}, None, None, 0.0),
        ({}, False, None, 0.0),
        ({}, False, 0.7, 0.0),
        ({}, True, None, 1.0),
        ({}, True, 0.7, 0.7),
        ({"temperature": 0.0}, True, 0.7, 0.0),
        ({"temperature": 0.5}, False, 0.7, 0.5),
        ({"top_p": 0.9}, False, 0.7, 0.7),
        ({"top_p": 0.9}, False, None, 1.0),
        ({"top_k": 5}, None, None, 1.0),
        ({"min_p": 0.1}, False, None, 1.0),
        ({"sampling": "rejection"}, False, None, 1.0),
        ({"top_p": 0.9, "temperature": 0.0}, True, None, 0.0),
        ({"seed": 5, "max_draft": 3, "stop": ["x"]}, False, 0.7, 0.0),
    ],
)
def test_temperature_and_sampling_flags_decide_whether_decoding_is_greedy(
    flags: dict[str, object], do_sample: bool | None, stored: float | None, expected: float
) -> None:
    done = complete(GenerationConfig.from_mapping(flags), CheckpointDefaults(do_sample=do_sample, temperature=stored), None)
    assert done.temperature == expected
    assert done.is_greedy == (expected == 0.0)


def read(folder: Path, data: object) -> CheckpointDefaults:
    path = folder / "generation_config.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return read_generation_config(path)


def test_generation_config_json_is_read(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path / "none.json") == CheckpointDefaults()
    assert read(tmp_path, {}) == CheckpointDefaults()
    assert read(tmp_path, {"eos_token_id": 5}).eos_token_ids == {5}
    assert read(tmp_path, {"eos_token_id": [5, 6, 5]}).eos_token_ids == {5, 6}
    assert read(tmp_path, {"eos_token_id": None, "temperature": None}) == CheckpointDefaults()
    full = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "max_new_tokens": 99, "eos_token_id": [1, 2]}
    assert read(tmp_path, full) == CheckpointDefaults(
        eos_token_ids=frozenset({1, 2}), do_sample=True, temperature=0.6, top_k=20, top_p=0.95, min_p=0.0, max_new_tokens=99
    )


def test_unsupported_settings_are_listed_unless_they_have_no_effect(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {
            "_from_model_config": True,
            "transformers_version": "5.0",
            "bos_token_id": 1,
            "pad_token_id": 0,
            "use_cache": True,
            "repetition_penalty": 1.1,
            "no_repeat_ngram_size": 3,
            "num_beams": 1,
            "typical_p": 1.0,
            "length_penalty": 1,
            "output_attentions": False,
            "forced_eos_token_id": None,
            "suppress_tokens": [7],
            "some_future_setting": "on",
        },
    )
    assert found.ignored == ("no_repeat_ngram_size", "repetition_penalty", "some_future_setting", "suppress_tokens")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "cannot be read"),
        ("", "cannot be read"),
        ("[" * 200_000, "cannot be read"),
        ("[]", "does not hold a JSON object"),
        ({"eos_token_id": "two"}, "eos_token_id must be one id or a list of ids, found 'two'"),
        ({"eos_token_id": [1, None]}, "eos_token_id"),
        ({"eos_token_id": True}, "eos_token_id"),
        ({"do_sample": "yes"}, "do_sample must be true or false, found 'yes'"),
    ],
)
def test_a_damaged_generation_config_is_refused(tmp_path: Path, data: object, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        read(tmp_path, data)
    assert "generation_config.json" in caught.value.message


@pytest.mark.parametrize(
    ("data", "ignored"),
    [
        ({"temperature": "hot"}, "temperature=hot"),
        ({"temperature": -1}, "temperature=-1"),
        ('{"temperature": NaN}', "temperature=nan"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_k": 1.5}, "top_k=1.5"),
        ({"top_k": [3]}, "top_k=[3]"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_a_default_that_cannot_be_used_is_ignored_by_name(tmp_path: Path, data: object, ignored: str) -> None:
    assert read(tmp_path, data) == CheckpointDefaults(ignored=(ignored,))


def test_a_default_that_is_written_otherwise_is_understood(tmp_path: Path) -> None:
    assert read(tmp_path, {"top_k": -1}) == CheckpointDefaults()
    assert read(tmp_path, {"top_k": 50.0, "max_new_tokens": 9.0}) == CheckpointDefaults(top_k=50, max_new_tokens=9)


def test_numbers_of_numpy_are_numbers() -> None:
    whole = {"max_new_tokens": np.int64(4), "seed": np.uint32(3), "top_k": np.int32(5)}
    config = GenerationConfig(**whole, temperature=np.float32(0.5), top_p=np.float16(0.5), min_p=np.float64(0))  # type: ignore[arg-type]
    assert config == GenerationConfig(max_new_tokens=4, seed=3, top_k=5, temperature=0.5, top_p=0.5, min_p=0.0)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["seed"] == 3
    for bad in (np.bool_(True), np.float32(2.0), np.array([3])):
        with pytest.raises(ConfigError, match="top_k must be a whole number"):
            GenerationConfig(top_k=bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="temperature is out of range: nan"):
        GenerationConfig(temperature=np.float32("nan"))  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """A nested record."""

    size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """A record with a field of every kind."""

    name: str
    ratio: float = 0.5
    maybe: int | None = None
    sizes: tuple[int, ...] = ()
    parts: dict[str, Inner] = dataclasses.field(default_factory=dict)
    inner: Inner | None = None
    free: Any = None


def test_a_record_is_read_from_json() -> None:
    data = {"name": "n", "ratio": 1, "maybe": None, "sizes": [1, 2], "parts": {"a": {"size": 1}}, "inner": {"size": 2}, "free": [{}]}
    expected = Outer(name="n", ratio=1.0, sizes=(1, 2), parts={"a": Inner(size=1)}, inner=Inner(size=2), free=[{}])
    found = read_record(Outer, data, where="file", error=ConfigError)
    assert found == expected
    assert isinstance(found.ratio, float)
    assert read_record(Outer, {"name": "n"}, where="file", error=ConfigError) == Outer(name="n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "file: key 'name' is missing"),
        ({"name": None}, "file: name: expected str, found NoneType None"),
        ({"name": "n", "nam": 1}, "file: unknown key 'nam' .did you mean 'name'."),
        ({"name": "n", "sizes": [1, "2"]}, r"file: sizes\[1\]: expected int, found str '2'"),
        ({"name": "n", "sizes": {"1": 2}}, "file: sizes: expected a list"),
        ({"name": "n", "parts": [1]}, "file: parts: expected an object with keys"),
        ({"name": "n", "parts": {"a": {"size": True}}}, "file: parts.a: size: expected int, found bool True"),
        ({"name": "n", "inner": {}}, "file: inner: key 'size' is missing"),
        ({"name": "n", "inner": 5}, "file: inner: expected an object with keys, found int 5"),
        ({"name": "n", "ratio": 10**400}, "file: ratio: .* is too large"),
        ({"name": "n", "maybe": 1.0}, "file: maybe: expected int, found float 1.0"),
        ({"name": "x" * 500, "inner": "y" * 500}, r"found str 'y{36}\.\.\."),
        (None, "file: expected an object with keys, found NoneType None"),
    ],
)
def test_a_wrong_record_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read_record(Outer, data, where="file", error=ArtifactError)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda x: st.lists(x) | st.dictionaries(st.text(max_size=8), x),
    )
)
def test_any_json_is_read_or_refused(data: Any) -> None:
    for key in (None, "temperature", "stop", "mode", "seed"):
        try:
            config = GenerationConfig.from_mapping(data if key is None else {key: data})
        except ConfigError:
            continue
        assert complete(config, CheckpointDefaults(), None).max_new_tokens >= 1


def test_errors_are_one_line() -> None:
    error = SelfSpecError("two\nlines   here", "and\n a hint")
    assert str(error) == "two lines here (and a hint)"
    assert str(SelfSpecError("no hint")) == "no hint"
    assert did_you_mean("tempratur", ["temperature", "top_k"]) == "did you mean 'temperature'?"
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"
