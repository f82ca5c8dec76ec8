"""The decode loop: prefill, then rounds of propose, verify and accept, until the text ends.

Autoregressive decoding (mode `plain`) is the same loop without a proposer. Decoding is lossless because only
the acceptance rule decides which tokens are emitted, and it decides from the outputs of verify passes. A
proposer changes the speed, not the text (with rejection sampling: not the distribution of texts).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ssruntime.acceptance import Acceptance
from ssruntime.backends.base import Slot
from ssruntime.config import DecodeSettings
from ssruntime.proposers.base import Proposer
from ssruntime.results import DecodeStats, Round, Trace


class TextEnd(Protocol):
    """Receives every committed token, and detects stop strings."""

    def push(self, token: int) -> bool:
        """Adds a token; returns whether a stop string is complete with it, which ends the text."""


@dataclass(slots=True)
class Request:
    """One sequence that is being decoded: its parts, its settings and its progress."""

    slot: Slot
    prompt_ids: Sequence[int]
    settings: DecodeSettings
    acceptance: Acceptance
    proposer: Proposer | None
    text: TextEnd
    stats: DecodeStats
    trace: Trace | None = None
    finish_reason: str | None = None


def decode(request: Request) -> Iterator[list[int]]:
    """Yields the tokens of each step as they are committed, the last ones after setting `finish_reason`.

    The statistics do not include the time that the consumer takes between two steps.
    """
    stats, slot, prompt_ids = request.stats, request.slot, request.prompt_ids
    room = slot.max_context - len(prompt_ids)
    limit = min(request.settings.max_new_tokens, room)
    reason_at_limit = "length" if request.settings.max_new_tokens <= room else "context"
    if request.trace is not None:
        request.trace.prompt_ids = list(prompt_ids)

    begun = time.perf_counter()
    token = request.acceptance.sample(slot.prefill(prompt_ids), len(prompt_ids))
    stats.prefill_s = time.perf_counter() - begun

    slot.engine_seconds = 0.0
    count, emitted = 0, [token]
    while True:
        begun = time.perf_counter()
        if count:
            emitted = _step(request, token, start=len(prompt_ids) + count - 1, remaining=limit - count)
            stats.emitted += len(emitted)
        kept = _commit(request, emitted)
        count += len(kept)
        token = kept[-1]
        stats.discarded += len(emitted) - len(kept)
        if request.finish_reason is None and count >= limit:
            request.finish_reason = reason_at_limit
        stats.decode_s += time.perf_counter() - begun
        stats.engine_s = slot.engine_seconds
        yield kept
        if request.finish_reason is not None:
            return


def _step(request: Request, token: int, *, start: int, remaining: int) -> list[int]:
    """Returns the tokens of one autoregressive step or of one round.

    The KV cache holds positions `[0, start)`, and `token` is at position `start`.
    """
    slot, proposer, stats = request.slot, request.proposer, request.stats
    if proposer is None:
        emitted = [request.acceptance.sample(slot.verify((token,), start), start + 1)]
        if request.trace is not None:
            request.trace.rounds.append(Round(start))
        return emitted
    # A round emits one token more than it accepts, so a draft of `remaining` tokens would waste its last one.
    proposal = proposer.propose(token, start, min(request.settings.max_draft, remaining - 1))
    output = slot.verify((token, *proposal.tokens), start, proposal.alternatives)
    emitted, alternative = request.acceptance.accept(output, proposal, start + 1)
    if alternative is not None:
        # The accepted alternative lies after the draft sequence in the KV cache. Copy its KV to its token's
        # position: that of the second-last emitted token. The KV of the last one is not computed yet.
        slot.copy_kv(start + 1 + len(proposal.tokens) + alternative, start + len(emitted) - 1)
        stats.alternatives_accepted += 1
    proposed, accepted = len(proposal.tokens), len(emitted) - 1
    # Stopping policies learn about the draft sequence only, whose token an accepted alternative replaced.
    proposer.observe(proposed, accepted - (alternative is not None))
    stats.rounds += 1
    stats.proposed += proposed
    stats.accepted += accepted
    stats.alternatives += len(proposal.alternatives)
    if request.trace is not None:
        request.trace.rounds.append(Round(start, tuple(proposal.tokens), tuple(proposal.alternatives), alternative))
    return emitted


def _commit(request: Request, emitted: list[int]) -> list[int]:
    """Returns the tokens up to the one that ends the text; sets `finish_reason` if there is such a token."""
    for index, token in enumerate(emitted):
        stopped = request.text.push(token)
        if token in request.settings.eos_token_ids:
            request.finish_reason = "eos"
        elif stopped:
            request.finish_reason = "stop"
        if request.finish_reason is not None:
            return emitted[: index + 1]
    return emitted
