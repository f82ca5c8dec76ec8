"""Acceptance rules, one per file: each decides which draft tokens are accepted; all are lossless."""

from __future__ import annotations

from collections.abc import Callable

from ssruntime.acceptance.base import Acceptance, RoundResult
from ssruntime.acceptance.coupled import CoupledAcceptance
from ssruntime.acceptance.greedy import GreedyAcceptance
from ssruntime.acceptance.min_length import MinLengthAcceptance
from ssruntime.acceptance.rejection import RejectionAcceptance
from ssruntime.config import DecodeSettings
from ssruntime.registry import ACCEPTANCE_RULES

__all__ = ["Acceptance", "CoupledAcceptance", "GreedyAcceptance", "MakeAcceptance", "RejectionAcceptance", "RoundResult", "make_acceptance"]

MakeAcceptance = Callable[[DecodeSettings], Acceptance]
"""Makes an acceptance rule for one request from its settings."""


def make_acceptance(settings: DecodeSettings, prompt_length: int) -> Acceptance:
    """Returns a new acceptance rule for one request: greedy at temperature 0, else as `sampling` says.

    Args:
        settings: completed settings.
        prompt_length: number of tokens in the prompt.
    """
    rule: Acceptance = GreedyAcceptance(settings.branch_margin) if settings.is_greedy else ACCEPTANCE_RULES[settings.sampling](settings)
    ends = settings.eos_token_ids | settings.stop_token_ids
    if settings.min_new_tokens and ends:
        return MinLengthAcceptance(rule, ends, prompt_length + settings.min_new_tokens - 1)
    return rule


ACCEPTANCE_RULES.register("coupled", CoupledAcceptance)
ACCEPTANCE_RULES.register("rejection", RejectionAcceptance)
