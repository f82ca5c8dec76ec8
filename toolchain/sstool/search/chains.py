"""Draft chains over a known text: what the real draft engine proposes from any position of it, and how sure it is of each token.

The text is the model's own and does not depend on the draft, so whatever the exit policy, decoding it means drafting from some of
its positions. A chain is run once, as far as a policy asks, and serves every stricter policy: a policy costs what it has not in
common with those before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ssruntime.acceptance import Acceptance
from ssruntime.backends.ort import OrtSlot
from sstool.search.texts import CalibrationText


@dataclass(slots=True)
class Chain:
    """Tokens drafted from one position.

    Attributes:
        confidences: the draft's confidence in each.
        agreed: how many of the first are the text's own.
        is_exhausted: whether the text ends here, so that no policy could draft further.
    """

    confidences: list[float] = field(default_factory=list)
    agreed: int = 0
    is_exhausted: bool = False

    def stop(self, threshold: float, max_draft: int) -> int | None:
        """Returns how many tokens a policy proposes; None if the chain is too short to say."""
        for number, confidence in enumerate(self.confidences[:max_draft], start=1):
            if confidence < threshold:
                return number
        if len(self.confidences) >= max_draft:
            return max_draft
        return len(self.confidences) if self.is_exhausted else None


class DraftedText:
    """One text and a candidate's chains over it.

    The slot's cache must hold the full model's keys and values of the whole text; they stay as they are.
    """

    def __init__(self, slot: OrtSlot, text: CalibrationText, acceptance: Acceptance) -> None:
        self.text = text
        self._slot = slot
        self._acceptance = acceptance
        self._chains: dict[int, Chain] = {}

    def position(self, count: int) -> int:
        """Returns where the last of `count` committed tokens stands."""
        return len(self.text.prompt) + count - 1

    def propose(self, count: int, threshold: float, max_draft: int, margin: tuple[float, int] = (0.0, 0)) -> tuple[int, int]:
        """Drafts behind the first `count` tokens of the continuation.

        Args:
            count: committed tokens, at least 1.
            threshold: draft confidence below which the policy stops.
            max_draft: most tokens.
            margin: how much lower a threshold and how many more tokens to run for at once, for the policies that are tried next.

        Returns:
            How many tokens the policy proposes, and how many of them verify would accept.
        """
        chain = self._chains.get(count)
        proposed = None if chain is None else chain.stop(threshold, max_draft)
        if chain is None or proposed is None:
            chain = self._chains[count] = self._run(count, threshold - margin[0], max_draft + margin[1])
            proposed = chain.stop(threshold, max_draft)
            assert proposed is not None
        return proposed, min(proposed, chain.agreed)

    def _run(self, count: int, threshold: float, max_draft: int) -> Chain:
        tokens, start = self.text.tokens, self.position(count)
        # As in decoding: the last token of a text is verify's own.
        room = len(tokens) - count - 1
        limit, chain = min(max_draft, room), Chain()
        token, agrees = tokens[count - 1], True
        with self._slot.preserved(start, start + limit):
            for step in range(limit):
                output = self._slot.draft(token, start + step)
                token = self._acceptance.propose(output, start + step + 1)
                chain.confidences.append(output.probability(0))
                agrees = agrees and token == tokens[count + step]
                chain.agreed += agrees
                if chain.confidences[-1] < threshold:
                    break
        chain.is_exhausted = len(chain.confidences) == room
        return chain
