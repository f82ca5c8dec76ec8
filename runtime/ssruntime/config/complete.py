"""Completion of a caller's configuration from the artifact, the checkpoint and sstool's defaults."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final, TypeVar

from ssruntime.artifact import StoppingRule
from ssruntime.config.checkpoint_defaults import CheckpointDefaults
from ssruntime.config.generation import GenerationConfig
from ssruntime.errors import ConfigError

V = TypeVar("V")

DEFAULT_MAX_NEW_TOKENS: Final = 128
DEFAULT_EXIT: Final = "adaptive"
DEFAULT_EXIT_THRESHOLD: Final = 0.6
DEFAULT_MAX_DRAFT: Final = 12
DEFAULT_MAX_ALTERNATIVES: Final = 2


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """A completed configuration: every setting has a value. The settings are those of `GenerationConfig`."""

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
        """Whether decoding is greedy: it takes the most probable token at every position."""
        return self.temperature == 0.0


def complete(
    config: GenerationConfig, defaults: CheckpointDefaults, tuned: StoppingRule | None, *, prefers_plain: bool = False
) -> DecodeSettings:
    """Returns `config` with a value for every setting that it leaves open.

    The draft's tuned stopping rule and the checkpoint's settings come first, sstool's own defaults last.

    Args:
        config: the caller's configuration.
        defaults: generation settings of the checkpoint.
        tuned: stopping rule that the draft was tuned with; None if no draft is open.
        prefers_plain: whether autoregressive decoding (mode `plain`) is the default although there is a
            draft, because no draft was found that is faster.

    Raises:
        ConfigError: if mode `speculative` is given without a draft, or a threshold for a draft that was tuned
            with exit `fixed`.
    """
    if config.mode == "speculative" and tuned is None:
        raise ConfigError(
            "mode 'speculative' needs a draft, and none is open", "use mode 'plain', or export with a skip set and load with draft=True"
        )
    has_draft = tuned is not None
    tuned = tuned or StoppingRule()
    exit_name = config.exit or tuned.exit or DEFAULT_EXIT
    threshold = config.exit_threshold
    if threshold is not None and exit_name == "fixed":
        raise ConfigError(
            "exit_threshold has no meaning with exit 'fixed', which this draft was tuned with",
            "leave exit_threshold out, or also set exit to 'confidence' or 'adaptive'",
        )
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


def _temperature(config: GenerationConfig, defaults: CheckpointDefaults) -> float:
    if config.temperature is not None:
        return config.temperature
    asked = any(v is not None for v in (config.top_k, config.top_p, config.min_p, config.sampling))
    if defaults.do_sample or asked:
        return _first(defaults.temperature, None, 1.0)
    return 0.0


def _first(first: V | None, second: V | None, last: V) -> V:
    return first if first is not None else second if second is not None else last
