"""Stopping policies, one per file: each decides when a draft sequence ends, and belongs to one request."""

from __future__ import annotations

from collections.abc import Callable

from ssruntime.config import DecodeSettings
from ssruntime.registry import STOPPING_POLICIES
from ssruntime.stopping.adaptive import AdaptiveStopping
from ssruntime.stopping.base import StoppingPolicy
from ssruntime.stopping.confidence import ConfidenceStopping
from ssruntime.stopping.fixed import FixedStopping

__all__ = ["AdaptiveStopping", "ConfidenceStopping", "FixedStopping", "MakePolicy", "StoppingPolicy", "make_stopping_policy"]

MakePolicy = Callable[[DecodeSettings], StoppingPolicy]
"""Makes a policy for one request from its settings."""


def make_stopping_policy(settings: DecodeSettings) -> StoppingPolicy:
    """Returns a new stopping policy for one request, as the settings `exit` and `exit_threshold` say."""
    policy: StoppingPolicy = STOPPING_POLICIES[settings.exit](settings)
    return policy


STOPPING_POLICIES.register("fixed", lambda _settings: FixedStopping())
STOPPING_POLICIES.register("confidence", lambda settings: ConfidenceStopping(settings.exit_threshold))
STOPPING_POLICIES.register("adaptive", lambda settings: AdaptiveStopping(settings.exit_threshold, max_draft=settings.max_draft))
