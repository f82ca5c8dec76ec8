"""The settings of a checkpoint's `generation_config.json` that the runtime follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ssruntime.config.generation import GenerationConfig
from ssruntime.errors import ArtifactError, ConfigError
from ssruntime.strict_reader import read_json_object

_CHECKED: Final = ("temperature", "top_k", "top_p", "min_p", "max_new_tokens")
_WHOLE: Final = ("top_k", "max_new_tokens")
_OFF: Final = -1
"""How other engines write a `top_k` that keeps every token."""
_FOLLOWED: Final = frozenset({*_CHECKED, "eos_token_id", "do_sample"})
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


@dataclass(frozen=True, kw_only=True)
class CheckpointDefaults:
    """A checkpoint's generation settings; a setting that the checkpoint does not give is None."""

    eos_token_ids: frozenset[int] = frozenset()
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    max_new_tokens: int | None = None
    ignored: tuple[str, ...] = field(default=())
    """Settings that would change the text, but that are not implemented or whose value cannot be used.

    They are names, or `name=value` for the latter."""


def read_generation_config(path: Path) -> CheckpointDefaults:
    """Returns the settings of a checkpoint's `generation_config.json`; without the file, no setting is given.

    Raises:
        ArtifactError: if the file is not JSON, or the value of `eos_token_id` or `do_sample` cannot be used.
    """
    if not path.exists():
        return CheckpointDefaults()
    data = read_json_object(path, error=ArtifactError, hint="restore the file from the checkpoint")
    try:
        return _defaults_from(data)
    except ConfigError as err:
        raise ArtifactError(f"{path}: {err.message}", "restore the file from the checkpoint") from err


def _defaults_from(data: Mapping[str, object]) -> CheckpointDefaults:
    followed, unusable = _usable({k: data[k] for k in _CHECKED if data.get(k) is not None})
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
        ignored=tuple(sorted([*unusable, *(k for k, v in data.items() if _is_ignored(k, v))])),
    )


def _usable(settings: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """Returns the settings that can be followed, and `name=value` of those that cannot.

    They are defaults that a user may override, so they do not decide whether the weights can be used.
    """
    followed: dict[str, object] = {}
    unusable: list[str] = []
    for name, value in settings.items():
        number = int(value) if isinstance(value, float) and value.is_integer() and name in _WHOLE else value
        if name == "top_k" and number == _OFF:
            continue
        try:
            GenerationConfig.from_mapping({name: number})
        except ConfigError:
            unusable.append(f"{name}={value}")
        else:
            followed[name] = number
    return followed, unusable


def _is_ignored(key: str, value: object) -> bool:
    if key.startswith("_") or key in _FOLLOWED or key in _HARMLESS or value is None or value is False:
        return False
    return key not in _NEUTRAL or _NEUTRAL[key] != value
