"""Decoding settings: what a caller may ask for, the checks on it, and how it is completed from the artifact's own settings."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from ssruntime.artifact import TunedExit
from ssruntime.errors import ArtifactError, ConfigError, did_you_mean
from ssruntime.graph_io import MAX_VERIFY_WIDTH
from ssruntime.strict_reader import read_record

V = TypeVar("V")

MODES: Final = ("plain", "speculative")
EXITS: Final = ("fixed", "confidence", "adaptive")
SAMPLINGS: Final = ("coupled", "rejection")
MAX_DRAFT_LIMIT: Final = MAX_VERIFY_WIDTH - 1
MAX_ALTERNATIVES_LIMIT: Final = 3
SEED_LIMIT: Final = 2**63

DEFAULT_MAX_NEW_TOKENS: Final = 128
DEFAULT_EXIT: Final = "adaptive"
DEFAULT_EXIT_THRESHOLD: Final = 0.6
DEFAULT_MAX_DRAFT: Final = 12
DEFAULT_MAX_ALTERNATIVES: Final = 2


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How to decode. What is None is taken from the artifact: its tuned exit, the checkpoint's generation settings, then defaults.

    Attributes:
        max_new_tokens: most tokens to add, at least 1. Default 128.
        mode: `plain` or `speculative`. Default speculative where the artifact has a draft.
        exit: when a draft stops: `fixed` (always `max_draft`), `confidence` (below a fixed threshold), `adaptive` (the threshold
            follows acceptance).
        exit_threshold: draft confidence in [0, 1] below which drafting stops; not for `fixed`.
        max_draft: most tokens a draft proposes in a round, 1 to 15.
        max_alternatives: most of the draft's next-best tokens that are verified beside each, 0 to 3; those that are nearly as good as it
            is. Default 2. None with `rejection`.
        temperature: 0 for greedy decoding, or above 0.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens with at least this probability, in (0, 1].
        min_p: keep tokens at least this fraction as probable as the best, in [0, 1].
        sampling: `coupled` (the same text as plain sampling with the same seed) or `rejection` (the same distribution).
        seed: 0 to 2**63 - 1. Random unless given.
        stop: texts that end the output; they are left out of it.
        ignore_eos: go on past end-of-sequence tokens.
    """

    max_new_tokens: int | None = None
    mode: str | None = None
    exit: str | None = None
    exit_threshold: float | None = None
    max_draft: int | None = None
    max_alternatives: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    sampling: str | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, MODES)
        _check_choice("exit", self.exit, EXITS)
        _check_choice("sampling", self.sampling, SAMPLINGS)
        _check_int("max_new_tokens", self.max_new_tokens, 1, None)
        _check_int("max_draft", self.max_draft, 1, MAX_DRAFT_LIMIT)
        _check_int("max_alternatives", self.max_alternatives, 0, MAX_ALTERNATIVES_LIMIT)
        _check_int("top_k", self.top_k, 0, None)
        _check_int("seed", self.seed, 0, SEED_LIMIT - 1)
        _check_float("exit_threshold", self.exit_threshold, 0.0, 1.0)
        _check_float("temperature", self.temperature, 0.0, None)
        _check_float("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        if self.exit == "fixed" and self.exit_threshold is not None:
            raise ConfigError("exit_threshold has no meaning with exit 'fixed'", "leave one of the two out")
        ignores: object = self.ignore_eos
        if not isinstance(ignores, bool):
            raise ConfigError(f"ignore_eos must be true or false, found {ignores!r}")
        stops: object = self.stop
        if not isinstance(stops, list | tuple) or any(not isinstance(s, str) or not s for s in stops):
            raise ConfigError(f"stop must be a list of texts, none of them empty, found {self.stop!r}", "leave empty ones out")

    @classmethod
    def from_mapping(cls, data: Mapping[str, object]) -> GenerationConfig:
        """Builds a configuration from parsed JSON or keyword-like data.

        Raises:
            ConfigError: for an unknown key, naming the closest known one, or a value out of its range.
        """
        return read_record(cls, data, where="generation config", error=ConfigError)


@dataclass(frozen=True, kw_only=True)
class CheckpointDefaults:
    """The parts of a checkpoint's `generation_config.json` that the runtime follows."""

    eos_token_ids: frozenset[int] = frozenset()
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    max_new_tokens: int | None = None
    ignored: tuple[str, ...] = field(default=())
    """Settings that are set to something that matters but that the runtime does not implement."""


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """A completed configuration: every choice made."""

    max_new_tokens: int
    mode: str
    exit: str
    exit_threshold: float
    max_draft: int
    max_alternatives: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    sampling: str
    seed: int
    stop: tuple[str, ...]
    eos_token_ids: frozenset[int]

    @property
    def is_greedy(self) -> bool:
        """Whether decoding takes the most probable token each time."""
        return self.temperature == 0.0


def complete(
    config: GenerationConfig, defaults: CheckpointDefaults, tuned: TunedExit | None, *, prefers_plain: bool = False
) -> DecodeSettings:
    """Fills what `config` leaves open: the artifact's tuned exit, then the checkpoint's settings, then sstool's own defaults.

    Args:
        config: what the caller asked for.
        defaults: the checkpoint's generation settings.
        tuned: the draft's tuned exit; None where the artifact has no draft.
        prefers_plain: decode plainly unless told, as no draft was found that is faster.

    Raises:
        ConfigError: if speculative decoding is asked of an artifact without a draft.
    """
    if config.mode == "speculative" and tuned is None:
        raise ConfigError("mode 'speculative' needs a draft, and this artifact has none", "use mode 'plain', or export with a skip set")
    has_draft = tuned is not None
    tuned = tuned or TunedExit()
    exit_name = config.exit or tuned.exit or DEFAULT_EXIT
    threshold = config.exit_threshold
    if threshold is not None and exit_name == "fixed":
        raise ConfigError("exit_threshold has no meaning with exit 'fixed', which this draft was tuned for", "name another exit too")
    if threshold is None:
        threshold = tuned.exit_threshold if exit_name == (tuned.exit or DEFAULT_EXIT) else None
    return DecodeSettings(
        max_new_tokens=config.max_new_tokens or defaults.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
        mode=config.mode or ("speculative" if has_draft and not prefers_plain else "plain"),
        exit=exit_name,
        exit_threshold=DEFAULT_EXIT_THRESHOLD if threshold is None else threshold,
        max_draft=config.max_draft or tuned.max_draft or DEFAULT_MAX_DRAFT,
        max_alternatives=_first(config.max_alternatives, tuned.max_alternatives, DEFAULT_MAX_ALTERNATIVES),
        temperature=_temperature(config, defaults),
        top_k=_first(config.top_k, defaults.top_k, 0),
        top_p=_first(config.top_p, defaults.top_p, 1.0),
        min_p=_first(config.min_p, defaults.min_p, 0.0),
        sampling=config.sampling or "coupled",
        seed=secrets.randbits(32) if config.seed is None else config.seed,
        stop=tuple(config.stop),
        eos_token_ids=frozenset() if config.ignore_eos else defaults.eos_token_ids,
    )


def check_tuned(tuned: TunedExit, mode: str | None) -> None:
    """Checks an exit that a file says a draft was tuned for. Raises ConfigError if a value is out of its range."""
    GenerationConfig(
        exit=tuned.exit,
        exit_threshold=tuned.exit_threshold,
        max_draft=tuned.max_draft,
        max_alternatives=tuned.max_alternatives,
        mode=mode,
    )


def read_generation_config(path: Path) -> CheckpointDefaults:
    """Reads a checkpoint's `generation_config.json`; a missing file gives defaults.

    Raises:
        ArtifactError: if the file is not JSON or holds values that cannot be used.
    """
    if not path.exists():
        return CheckpointDefaults()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{path} cannot be read: {err}", "restore the file from the checkpoint") from err
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} does not hold a JSON object", "restore the file from the checkpoint")
    try:
        return _defaults_from(data)
    except (ConfigError, TypeError, ValueError) as err:
        raise ArtifactError(f"{path}: {getattr(err, 'message', err)}", "restore the file from the checkpoint") from err


def _defaults_from(data: Mapping[str, object]) -> CheckpointDefaults:
    followed = {k: data[k] for k in ("temperature", "top_k", "top_p", "min_p", "max_new_tokens") if data.get(k) is not None}
    checked = GenerationConfig.from_mapping(followed)
    eos = data.get("eos_token_id")
    named = eos if isinstance(eos, list) else [] if eos is None else [eos]
    ids = [i for i in named if isinstance(i, int) and not isinstance(i, bool)]
    if len(ids) < len(named):
        raise ConfigError(f"eos_token_id must be one id or a list of ids, found {eos!r}")
    sampled = data.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        raise ConfigError(f"do_sample must be true or false, found {sampled!r}")
    return CheckpointDefaults(
        eos_token_ids=frozenset(ids),
        do_sample=sampled,
        temperature=checked.temperature,
        top_k=checked.top_k,
        top_p=checked.top_p,
        min_p=checked.min_p,
        max_new_tokens=checked.max_new_tokens,
        ignored=tuple(sorted(k for k, v in data.items() if _is_ignored(k, v))),
    )


_FOLLOWED: Final = frozenset({"temperature", "top_k", "top_p", "min_p", "max_new_tokens", "eos_token_id", "do_sample"})
_HARMLESS: Final = frozenset({"bos_token_id", "pad_token_id", "transformers_version", "use_cache", "cache_implementation"})
_NEUTRAL: Final[Mapping[str, object]] = {
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
    "encoder_repetition_penalty": 1.0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "max_length": 20,
}


def _is_ignored(key: str, value: object) -> bool:
    if key.startswith("_") or key in _FOLLOWED or key in _HARMLESS or value is None or value is False:
        return False
    return key not in _NEUTRAL or _NEUTRAL[key] != value


def _temperature(config: GenerationConfig, defaults: CheckpointDefaults) -> float:
    if config.temperature is not None:
        return config.temperature
    asked = any(v is not None for v in (config.top_k, config.top_p, config.min_p, config.sampling))
    if defaults.do_sample or asked:
        return _first(defaults.temperature, None, 1.0)
    return 0.0


def _first(first: V | None, second: V | None, last: V) -> V:
    return first if first is not None else second if second is not None else last


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, found {value!r}", did_you_mean(value, choices))


def _check_int(name: str, value: int | None, low: int, high: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, found {value!r}", _range_hint(low, high))
    if value < low or (high is not None and value > high):
        raise ConfigError(f"{name} is out of range: {value}", _range_hint(low, high))


def _check_float(name: str, value: float | None, low: float, high: float | None, *, above: bool = False) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, found {value!r}", _range_hint(low, high))
    top = sys.float_info.max if high is None else high
    if not low <= value <= top or (above and value == low):  # NaN is in no range
        raise ConfigError(f"{name} is out of range: {value}", _range_hint(low, high, above=above))


def _range_hint(low: float, high: float | None, *, above: bool = False) -> str:
    start = f"above {_number(low)}" if above else f"{_number(low)} or more"
    return start if high is None else f"{start}, at most {_number(high)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"  # whole numbers in full: a seed's limit has 19 digits
