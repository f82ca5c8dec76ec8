"""Exit policies: when a draft stops proposing. One policy a file; its state belongs to one request."""

from __future__ import annotations

from ssruntime.config import DecodeSettings
from ssruntime.stopping.adaptive import AdaptiveExit
from ssruntime.stopping.base import ExitPolicy
from ssruntime.stopping.confidence import ConfidenceExit
from ssruntime.stopping.fixed import FixedExit

__all__ = ["AdaptiveExit", "ConfidenceExit", "ExitPolicy", "FixedExit", "make_exit"]


def make_exit(settings: DecodeSettings) -> ExitPolicy:
    """Returns a fresh policy for one request."""
    if settings.exit == "fixed":
        return FixedExit()
    if settings.exit == "confidence":
        return ConfidenceExit(settings.exit_threshold)
    return AdaptiveExit(settings.exit_threshold, max_draft=settings.max_draft)
