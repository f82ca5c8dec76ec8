"""Proposers: the sources of draft tokens, each registered under the mode that uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ssruntime.acceptance import Acceptance
from ssruntime.config import DecodeSettings
from ssruntime.planning.planner import Planner, RequestPlanner
from ssruntime.proposers.base import Proposer, SequenceView
from ssruntime.proposers.lookup import TextLookup
from ssruntime.proposers.mixed import MixedProposer
from ssruntime.proposers.ngram import NgramProposer
from ssruntime.proposers.skip import SkipProposer
from ssruntime.registry import PROPOSERS
from ssruntime.stopping import OptimalStopping, StoppingPolicy

__all__ = ["MakeProposer", "Parts", "Proposer", "SequenceView", "make_proposer"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What proposers are made of.

    Attributes:
        settings: completed settings of the request.
        acceptance: its acceptance rule.
        planner: costs and acceptance probabilities, which all requests share.
        alternatives_end: first position at which no alternative is allowed.
    """

    settings: DecodeSettings
    acceptance: Acceptance
    planner: Planner
    alternatives_end: int


MakeProposer = Callable[[Parts], Proposer | None]
"""Makes a proposer for one request; None for autoregressive decoding."""


def make_proposer(parts: Parts) -> Proposer | None:
    """Returns a new proposer for one request; None for autoregressive decoding (mode `plain`)."""
    proposer: Proposer | None = PROPOSERS[parts.settings.mode](parts)
    return proposer


def _skip(parts: Parts) -> SkipProposer:
    return _drafting(parts, parts.settings.stopping.policy(parts.planner, parts.settings.kind))


def _drafting(parts: Parts, stopping: StoppingPolicy) -> SkipProposer:
    settings = parts.settings
    return SkipProposer(
        parts.acceptance,
        stopping,
        max_draft=settings.stopping.max_draft,
        max_alternatives=settings.max_alternatives,
        alternatives_end=parts.alternatives_end,
        costs=parts.planner.costs if settings.stopping.uses_costs else None,
    )


def _lookup(parts: Parts) -> TextLookup:
    return TextLookup(parts.planner, parts.settings.kind, parts.settings.stopping.max_draft)


def _ngram(parts: Parts) -> NgramProposer:
    return NgramProposer(_lookup(parts), parts.planner.costs)


def _auto(parts: Parts) -> MixedProposer:
    settings = parts.settings
    planner = RequestPlanner(parts.planner, settings.kind, settings.stopping.max_draft)
    return MixedProposer(_lookup(parts), _drafting(parts, OptimalStopping(planner)), planner)


PROPOSERS.register("plain", lambda _parts: None)
PROPOSERS.register("speculative", _skip)
PROPOSERS.register("ngram", _ngram)
PROPOSERS.register("auto", _auto)
