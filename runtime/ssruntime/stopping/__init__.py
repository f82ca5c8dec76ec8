"""Exit policies: when a draft stops proposing. One policy a file; its state belongs to one request."""

from __future__ import annotations

from ssruntime.config import DecodeSettings
from ssruntime.stopping.adaptive import AdaptiveStopping
from ssruntime.stopping.base import StoppingPolicy
from ssruntime.stopping.confidence import ConfidenceStopping
from ssruntime.stopping.fixed import FixedStopping

__all__ = ["AdaptiveStopping", "ConfidenceStopping", "FixedStopping", "StoppingPolicy", "make_stopping_policy"]


def make_stopping_policy(settings: DecodeSettings) -> StoppingPolicy:
    """Returns a fresh policy for one request."""
    if settings.exit == "fixed":
        return FixedStopping()
    if settings.exit == "confidence":
        return ConfidenceStopping(settings.exit_threshold)
    return AdaptiveStopping(settings.exit_threshold, max_draft=settings.max_draft)
