"""The stopping rules that the search tries for a candidate, and their neighbours."""

from __future__ import annotations

import dataclasses
from typing import Final

from ssruntime.stopping import MAX_DRAFT_LIMIT, ConfidenceRule, FixedRule, StoppingRule

THRESHOLDS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Confidence thresholds that are tried; 0 never stops a draft, which is the stopping rule `fixed`."""
START: Final = ConfidenceRule(exit_threshold=0.6, max_draft=6)
"""The stopping rule that tuning starts from while no better one is known."""
# How much further than asked a draft sequence runs, so that similar rules reuse it.
_MORE_TOKENS: Final = 2
_LOWER_THRESHOLD: Final = 0.1


def neighbours(rule: StoppingRule) -> list[StoppingRule]:
    """Returns the stopping rules that differ in one setting by one step."""
    at, most = THRESHOLDS.index(_threshold(rule)), rule.max_draft
    moved = [(at, most - 1), (at, most + 1), (at - 1, most), (at + 1, most)]
    return [_rule(THRESHOLDS[t], m) for t, m in moved if 0 <= t < len(THRESHOLDS) and 1 <= m <= MAX_DRAFT_LIMIT]


def looser(rule: StoppingRule) -> StoppingRule:
    """Returns a rule that drafts a little further."""
    if isinstance(rule, ConfidenceRule):
        rule = dataclasses.replace(rule, exit_threshold=max(0.0, rule.exit_threshold - _LOWER_THRESHOLD))
    return dataclasses.replace(rule, max_draft=min(MAX_DRAFT_LIMIT, rule.max_draft + _MORE_TOKENS))


def _threshold(rule: StoppingRule) -> float:
    return rule.exit_threshold if isinstance(rule, ConfidenceRule) else 0.0


def _rule(threshold: float, max_draft: int) -> StoppingRule:
    return ConfidenceRule(exit_threshold=threshold, max_draft=max_draft) if threshold > 0 else FixedRule(max_draft=max_draft)
