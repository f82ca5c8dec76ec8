"""Decoding settings: a caller's configuration, the checkpoint's settings, and both completed by defaults."""

from __future__ import annotations

from ssruntime.config.checkpoint_defaults import CheckpointDefaults, read_generation_config
from ssruntime.config.complete import (
    DEFAULT_MAX_ALTERNATIVES,
    DEFAULT_MAX_NEW_TOKENS,
    DecodeSettings,
    complete,
)
from ssruntime.config.generation import (
    EXITS,
    MAX_ALTERNATIVES_LIMIT,
    MODES,
    SAMPLINGS,
    SEED_LIMIT,
    GenerationConfig,
)

__all__ = [  # noqa: RUF022 - grouped by meaning
    # configurations and their functions
    "GenerationConfig",
    "CheckpointDefaults",
    "DecodeSettings",
    "complete",
    "read_generation_config",
    # choices and limits
    "EXITS",
    "MODES",
    "SAMPLINGS",
    "MAX_ALTERNATIVES_LIMIT",
    "SEED_LIMIT",
    # defaults
    "DEFAULT_MAX_ALTERNATIVES",
    "DEFAULT_MAX_NEW_TOKENS",
]
