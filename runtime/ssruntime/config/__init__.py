"""Decoding settings: a caller's configuration, the checkpoint's settings, and both completed by defaults."""

from __future__ import annotations

from ssruntime.config.checkpoint_defaults import CheckpointDefaults, read_generation_config
from ssruntime.config.complete import (
    DEFAULT_EXIT,
    DEFAULT_EXIT_THRESHOLD,
    DEFAULT_MAX_ALTERNATIVES,
    DEFAULT_MAX_DRAFT,
    DEFAULT_MAX_NEW_TOKENS,
    DecodeSettings,
    complete,
)
from ssruntime.config.generation import (
    EXITS,
    MAX_ALTERNATIVES_LIMIT,
    MAX_DRAFT_LIMIT,
    MODES,
    SAMPLINGS,
    SEED_LIMIT,
    GenerationConfig,
    check_stopping_rule,
)

__all__ = [  # noqa: RUF022 - grouped by meaning
    # configurations and their functions
    "GenerationConfig",
    "CheckpointDefaults",
    "DecodeSettings",
    "complete",
    "check_stopping_rule",
    "read_generation_config",
    # choices and limits
    "EXITS",
    "MODES",
    "SAMPLINGS",
    "MAX_DRAFT_LIMIT",
    "MAX_ALTERNATIVES_LIMIT",
    "SEED_LIMIT",
    # defaults
    "DEFAULT_EXIT",
    "DEFAULT_EXIT_THRESHOLD",
    "DEFAULT_MAX_ALTERNATIVES",
    "DEFAULT_MAX_DRAFT",
    "DEFAULT_MAX_NEW_TOKENS",
]
