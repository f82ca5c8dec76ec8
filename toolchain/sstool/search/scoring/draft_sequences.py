"""Draft sequences over a known text: what the real draft engine proposes from each position of it.

The text is the model's own and does not depend on the draft. So under any stopping policy, decoding the text
means drafting from some of its positions. Draft sequences are cached: the first policy that needs one runs
it, and stricter policies reuse it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ssruntime.acceptance import Acceptance
from ssruntime.backends.base import Slot
from ssruntime.graph_io import MAX_QUERY_LENGTH
from ssruntime.planning.acceptance import Evidence, outcomes
from ssruntime.planning.planner import unlearned
from ssruntime.proposal import room_beside
from ssruntime.stopping import StoppingPolicy, StoppingRule
from sstool.search.scoring.rules import looser
from sstool.search.texts.make import CalibrationText


class Drafted(NamedTuple):
    """What a stopping policy proposes from one position, and how much of it would be accepted.

    Attributes:
        proposed: number of tokens in the draft sequence.
        accepted: number of those positions at which verify would accept the drafted token or an alternative
            to it.
        alternatives: number of alternatives verified (side branches of the token tree, one token long).
        pending: committed tokens without KV after the round: 2 if an alternative was accepted, else 1.
    """

    proposed: int
    accepted: int
    alternatives: int
    pending: int = 1


@dataclass(slots=True)
class DraftSequence:
    """The tokens drafted from one position.

    Attributes:
        evidence: what is known of each token.
        alternatives: number of alternatives to each token.
        agreed: number of leading tokens that equal those of the text.
        rank: rank of the text's token among the alternatives to the first token that differs from the text;
            0 is the best, None if it is not among them.
        is_exhausted: whether the sequence reaches the end of the text, so that no policy could draft further.
    """

    evidence: list[Evidence] = field(default_factory=list)
    alternatives: list[int] = field(default_factory=list)
    agreed: int = 0
    rank: int | None = None
    is_exhausted: bool = False

    def stop(self, policy: StoppingPolicy, max_draft: int, context: int) -> int | None:
        """Returns how many tokens a policy proposes; None if the sequence is too short to tell.

        Args:
            policy: policy in the state before the round.
            max_draft: largest number of tokens.
            context: number of tokens before the sequence.
        """
        if not policy.begin(context, max_draft):
            return 0
        for number, evidence in enumerate(self.evidence[:max_draft], start=1):
            if not policy.goes_on(number, evidence):
                return number
        if len(self.evidence) >= max_draft:
            return max_draft
        return len(self.evidence) if self.is_exhausted else None

    def outcome(self, proposed: int, room: int) -> Drafted:
        """Returns what verify would accept if `proposed` tokens are proposed.

        Args:
            proposed: number of tokens, as `stop` returned it.
            room: number of alternatives that fit into the verify pass.
        """
        alternatives = min(room, sum(self.alternatives[:proposed]))
        if self.agreed >= proposed:
            return Drafted(proposed, proposed, alternatives)
        saves = self.rank is not None and sum(self.alternatives[: self.agreed]) + self.rank < room
        return Drafted(proposed, self.agreed + saves, alternatives, 1 + saves)


class DraftedText:
    """One text, and a candidate's draft sequences over it.

    Counting assumes that verify always emits a token after an accepted alternative. Decoding leaves it to the
    next round where the target's choice is close, so it emits slightly fewer tokens per round than this.

    The slot's KV cache must hold the full model's KV of the whole text. Drafting does not change it.
    """

    def __init__(self, slot: Slot, text: CalibrationText, acceptance: Acceptance, *, max_alternatives: int, alternatives_end: int) -> None:
        """Takes a text and a slot that drafts over it.

        Args:
            slot: slot with the candidate's draft.
            text: text whose KV the slot holds.
            acceptance: acceptance rule with the text's noise.
            max_alternatives: largest number of alternatives to a drafted token.
            alternatives_end: first position at which no alternative is allowed when the text is decoded. It
                is not this slot's own limit, because decoding uses a larger KV cache.
        """
        self.text = text
        self._max_alternatives = max_alternatives
        self._alternatives_end = alternatives_end
        self._slot = slot
        self._acceptance = acceptance
        self._sequences: dict[tuple[int, int], DraftSequence] = {}

    def position(self, count: int) -> int:
        """Returns the position of the last of `count` committed tokens."""
        return len(self.text.prompt) + count - 1

    def propose(self, count: int, rule: StoppingRule, policy: StoppingPolicy, *, pending: int = 1) -> Drafted:
        """Returns what a policy proposes after `count` tokens of the continuation, and how much is accepted.

        If the engine has to run, it drafts a little further than asked. Rules that are tried next then find a
        sequence that is long enough.

        Args:
            count: number of committed tokens, at least 1.
            rule: stopping rule.
            policy: its policy, in the state before the round.
            pending: committed tokens without KV, which the verify pass runs before the draft sequence.
        """
        room, context = MAX_QUERY_LENGTH - pending, self.position(count) + 1
        max_draft, key = min(rule.max_draft, room), (count, pending)
        sequence = self._sequences.get(key)
        if max_draft < 1 or not policy.begin(context, max_draft):
            return Drafted(0, 0, 0)
        proposed = None if sequence is None else sequence.stop(policy, max_draft, context)
        if sequence is None or proposed is None:
            further = looser(rule)
            sequence = self._run(count, pending, (policy, further.policy(unlearned(), self.text.kind)), min(further.max_draft, room))
            self._sequences[key] = sequence
            proposed = sequence.stop(policy, max_draft, context)
            assert proposed is not None
        before = pending - 1
        return sequence.outcome(proposed, room_beside(before + proposed, self.position(count) - before, self._alternatives_end))

    def observed(self) -> list[tuple[Evidence, bool]]:
        """Returns what was known of each draft token that verify would reach, and whether it is right."""
        return [one for sequence in self._sequences.values() for one in outcomes(sequence.evidence, sequence.agreed)]

    def _run(self, count: int, pending: int, policies: Sequence[StoppingPolicy], max_draft: int) -> DraftSequence:
        """Returns the sequence that the draft engine proposes from one position, until every policy stops.

        Of committed tokens without KV, the draft engine computes the KV itself, as in decoding.
        """
        tokens, start = self.text.tokens, self.position(count)
        # As in decoding, the last token of a text comes from verify.
        room = len(tokens) - count - 1
        limit, sequence = min(max_draft, room), DraftSequence()
        agrees = True
        ids: tuple[int, ...] = (*self.text.prompt, *tokens)[start + 1 - pending : start + 1]
        for policy in policies:
            policy.begin(start + 1, max_draft)
        with self._slot.preserved(start + 1 - pending, start + limit):
            for step in range(limit):
                output = self._slot.draft(ids, start + step + 1 - len(ids))
                (token, *others), evidence, _ = self._acceptance.sample_draft(output, start + step + 1, self._max_alternatives)
                ids = (token,)
                sequence.evidence.append(evidence)
                sequence.alternatives.append(len(others))
                known = tokens[count + step]
                if agrees and token != known:
                    agrees = False
                    sequence.rank = others.index(known) if known in others else None
                sequence.agreed += agrees
                go_on = [policy.goes_on(step + 1, evidence) for policy in policies]
                if not any(go_on):
                    break
        sequence.is_exhausted = len(sequence.evidence) == room
        return sequence
