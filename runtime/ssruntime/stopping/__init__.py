"""Stopping rules and their policies, one per file: they say when a draft sequence ends."""

from __future__ import annotations

from ssruntime.registry import STOPPING_RULES
from ssruntime.stopping.adaptive import AdaptiveRule, AdaptiveStopping
from ssruntime.stopping.base import (
    DEFAULT_EXIT,
    DEFAULT_EXIT_THRESHOLD,
    DEFAULT_MAX_DRAFT,
    MAX_DRAFT_LIMIT,
    StoppingPolicy,
    StoppingRule,
    ThresholdRule,
    rule_class,
)
from ssruntime.stopping.confidence import ConfidenceRule, ConfidenceStopping
from ssruntime.stopping.fixed import FixedRule, FixedStopping
from ssruntime.stopping.optimal import OptimalRule, OptimalStopping

__all__ = [  # noqa: RUF022 - grouped by meaning
    # rules
    "StoppingRule",
    "ThresholdRule",
    "FixedRule",
    "ConfidenceRule",
    "AdaptiveRule",
    "OptimalRule",
    "rule_class",
    # policies
    "StoppingPolicy",
    "FixedStopping",
    "ConfidenceStopping",
    "AdaptiveStopping",
    "OptimalStopping",
    # defaults and limits
    "DEFAULT_EXIT",
    "DEFAULT_EXIT_THRESHOLD",
    "DEFAULT_MAX_DRAFT",
    "MAX_DRAFT_LIMIT",
]

STOPPING_RULES.register("fixed", FixedRule)
STOPPING_RULES.register("confidence", ConfidenceRule)
STOPPING_RULES.register("adaptive", AdaptiveRule)
STOPPING_RULES.register("optimal", OptimalRule)
