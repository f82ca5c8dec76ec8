"""Proposers: the sources of draft tokens, each registered under the mode that uses it."""

from __future__ import annotations

from collections.abc import Callable

from ssruntime.acceptance import Acceptance
from ssruntime.config import DecodeSettings
from ssruntime.proposers.base import Proposer, SequenceView
from ssruntime.proposers.skip import SkipProposer
from ssruntime.registry import PROPOSERS
from ssruntime.stopping import StoppingPolicy

__all__ = ["MakeProposer", "Proposer", "SequenceView", "SkipProposer", "make_proposer"]

MakeProposer = Callable[[DecodeSettings, Acceptance, StoppingPolicy, int], Proposer | None]
"""Makes a proposer for one request from its settings, its acceptance rule, its stopping policy, and the first
position at which no alternative is allowed; None for autoregressive decoding."""


def make_proposer(settings: DecodeSettings, acceptance: Acceptance, *, alternatives_end: int) -> Proposer | None:
    """Returns a new proposer for one request; None for autoregressive decoding (mode `plain`)."""
    proposer: Proposer | None = PROPOSERS[settings.mode](settings, acceptance, settings.stopping.policy(), alternatives_end)
    return proposer


def _skip(settings: DecodeSettings, acceptance: Acceptance, stopping: StoppingPolicy, alternatives_end: int) -> Proposer:
    return SkipProposer(acceptance, stopping, max_alternatives=settings.max_alternatives, alternatives_end=alternatives_end)


PROPOSERS.register("plain", lambda *_: None)
PROPOSERS.register("speculative", _skip)
