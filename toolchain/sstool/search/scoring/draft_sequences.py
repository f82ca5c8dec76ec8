"""Draft chains over a known text: what the real draft engine proposes from any position of it, and how sure it is of each token.

The text is the model's own and does not depend on the draft, so whatever the exit policy, decoding it means drafting from some of
its positions. A chain is run once, as far as a policy asks, and serves every stricter policy: a policy costs what it has not in
common with those before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ssruntime.acceptance import Acceptance
from ssruntime.backends.ort.slot import OrtSlot
from ssruntime.proposal import room_beside
from sstool.search.texts.make import CalibrationText


class Drafted(NamedTuple):
    """What a policy proposes from one position, and what comes of it.

    Attributes:
        proposed: tokens of the chain.
        accepted: how many positions of it verify would accept, an alternative's included.
        alternatives: tokens verified beside the chain's.
    """

    proposed: int
    accepted: int
    alternatives: int


@dataclass(slots=True)
class DraftSequence:
    """Tokens drafted from one position.

    Attributes:
        confidences: the draft's confidence in each.
        alternatives: how many alternatives each has.
        agreed: how many of the first are the text's own.
        rank: of the text's token among the alternatives of the first that is not; None if it is none of them.
        is_exhausted: whether the text ends here, so that no policy could draft further.
    """

    confidences: list[float] = field(default_factory=list)
    alternatives: list[int] = field(default_factory=list)
    agreed: int = 0
    rank: int | None = None
    is_exhausted: bool = False

    def stop(self, threshold: float, max_draft: int) -> int | None:
        """Returns how many tokens a policy proposes; None if the chain is too short to say."""
        for number, confidence in enumerate(self.confidences[:max_draft], start=1):
            if confidence < threshold:
                return number
        if len(self.confidences) >= max_draft:
            return max_draft
        return len(self.confidences) if self.is_exhausted else None

    def outcome(self, proposed: int, start: int, end: int) -> Drafted:
        """Returns what comes of proposing so many tokens.

        Args:
            proposed: as `stop` says.
            start: position of the token before them.
            end: position from which on no alternative may stand.
        """
        room = room_beside(proposed, start, end)
        alternatives = min(room, sum(self.alternatives[:proposed]))
        if self.agreed >= proposed:
            return Drafted(proposed, proposed, alternatives)
        saves = self.rank is not None and sum(self.alternatives[: self.agreed]) + self.rank < room
        return Drafted(proposed, self.agreed + saves, alternatives)


class DraftedText:
    """One text and a candidate's chains over it.

    The slot's cache must hold the full model's keys and values of the whole text; they stay as they are.
    """

    def __init__(
        self, slot: OrtSlot, text: CalibrationText, acceptance: Acceptance, *, max_alternatives: int, alternatives_end: int
    ) -> None:
        """Takes a text and what drafts it.

        Args:
            slot: with the candidate's draft.
            text: whose keys and values the slot holds.
            acceptance: with the text's noise.
            max_alternatives: most that a drafted token has.
            alternatives_end: position from which on none may stand where the text is decoded: in a larger cache than this slot's.
        """
        self.text = text
        self._max_alternatives = max_alternatives
        self._alternatives_end = alternatives_end
        self._slot = slot
        self._acceptance = acceptance
        self._chains: dict[int, DraftSequence] = {}

    def position(self, count: int) -> int:
        """Returns where the last of `count` committed tokens stands."""
        return len(self.text.prompt) + count - 1

    def propose(self, count: int, threshold: float, max_draft: int, margin: tuple[float, int] = (0.0, 0)) -> Drafted:
        """Drafts behind the first `count` tokens of the continuation.

        Args:
            count: committed tokens, at least 1.
            threshold: draft confidence below which the policy stops.
            max_draft: most tokens.
            margin: how much lower a threshold and how many more tokens to run for at once, for the policies that are tried next.
        """
        chain = self._chains.get(count)
        proposed = None if chain is None else chain.stop(threshold, max_draft)
        if chain is None or proposed is None:
            chain = self._chains[count] = self._run(count, threshold - margin[0], max_draft + margin[1])
            proposed = chain.stop(threshold, max_draft)
            assert proposed is not None
        return chain.outcome(proposed, self.position(count), self._alternatives_end)

    def _run(self, count: int, threshold: float, max_draft: int) -> DraftSequence:
        tokens, start = self.text.tokens, self.position(count)
        # As in decoding: the last token of a text is verify's own.
        room = len(tokens) - count - 1
        limit, chain = min(max_draft, room), DraftSequence()
        token, agrees = tokens[count - 1], True
        with self._slot.preserved(start, start + limit):
            for step in range(limit):
                output = self._slot.draft(token, start + step)
                token, *others = self._acceptance.sample_draft(output, start + step + 1, self._max_alternatives)
                chain.confidences.append(output.probability(0))
                chain.alternatives.append(len(others))
                known = tokens[count + step]
                if agrees and token != known:
                    agrees = False
                    chain.rank = others.index(known) if known in others else None
                chain.agreed += agrees
                if chain.confidences[-1] < threshold:
                    break
        chain.is_exhausted = len(chain.confidences) == room
        return chain
