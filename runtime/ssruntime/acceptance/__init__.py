"""Acceptance rules, one per file: each decides which draft tokens are accepted; all are lossless."""

from __future__ import annotations

from collections.abc import Callable

from ssruntime.acceptance.base import Acceptance, RoundResult
from ssruntime.acceptance.coupled import CoupledAcceptance
from ssruntime.acceptance.greedy import GreedyAcceptance
from ssruntime.acceptance.rejection import RejectionAcceptance
from ssruntime.config import DecodeSettings
from ssruntime.registry import ACCEPTANCE_RULES

__all__ = ["Acceptance", "CoupledAcceptance", "GreedyAcceptance", "MakeAcceptance", "RejectionAcceptance", "RoundResult", "make_acceptance"]

MakeAcceptance = Callable[[DecodeSettings], Acceptance]
"""Makes an acceptance rule for one request from its settings."""


def make_acceptance(settings: DecodeSettings) -> Acceptance:
    """Returns a new acceptance rule for one request: greedy at temperature 0, else as `sampling` says."""
    if settings.is_greedy:
        return GreedyAcceptance()
    rule: Acceptance = ACCEPTANCE_RULES[settings.sampling](settings)
    return rule


ACCEPTANCE_RULES.register("coupled", CoupledAcceptance)
ACCEPTANCE_RULES.register("rejection", RejectionAcceptance)
