"""Acceptance rules, one per file: each decides which draft tokens are accepted; all are lossless."""

from __future__ import annotations

from ssruntime.acceptance.base import Acceptance, RoundResult
from ssruntime.acceptance.coupled import CoupledAcceptance
from ssruntime.acceptance.greedy import GreedyAcceptance
from ssruntime.acceptance.rejection import RejectionAcceptance
from ssruntime.config import DecodeSettings

__all__ = ["Acceptance", "CoupledAcceptance", "GreedyAcceptance", "RejectionAcceptance", "RoundResult", "make_acceptance"]


def make_acceptance(settings: DecodeSettings) -> Acceptance:
    """Returns a new acceptance rule for one request: greedy at temperature 0, else as `sampling` says."""
    if settings.is_greedy:
        return GreedyAcceptance()
    return CoupledAcceptance(settings) if settings.sampling == "coupled" else RejectionAcceptance(settings)
