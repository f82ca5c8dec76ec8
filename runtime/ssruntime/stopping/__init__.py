"""Stopping policies, one per file: each decides when a draft sequence ends, and belongs to one request."""

from __future__ import annotations

from ssruntime.config import DecodeSettings
from ssruntime.stopping.adaptive import AdaptiveStopping
from ssruntime.stopping.base import StoppingPolicy
from ssruntime.stopping.confidence import ConfidenceStopping
from ssruntime.stopping.fixed import FixedStopping

__all__ = ["AdaptiveStopping", "ConfidenceStopping", "FixedStopping", "StoppingPolicy", "make_stopping_policy"]


def make_stopping_policy(settings: DecodeSettings) -> StoppingPolicy:
    """Returns a new stopping policy for one request, as the settings `exit` and `exit_threshold` say."""
    if settings.exit == "fixed":
        return FixedStopping()
    if settings.exit == "confidence":
        return ConfidenceStopping(settings.exit_threshold)
    return AdaptiveStopping(settings.exit_threshold, max_draft=settings.max_draft)
