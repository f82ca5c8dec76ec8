"""The score of a candidate: tokens per second, from counts of really drafting over known texts and the latency table's costs.

No clock is read, so the same skip set, texts and table always give the same score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

from sstool.search.drafts.space import Bits
from sstool.search.log.records import Counts
from sstool.search.scoring.draft_sequences import DraftedText
from sstool.search.speed_model.costs import CostModel
from sstool.search.texts.make import CalibrationText

THRESHOLDS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Confidence exits that are tried; 0 never stops a draft, which is the `fixed` exit."""
MAX_DRAFTS: Final = tuple(range(1, 16))
_MARGIN: Final = (0.1, 2)
"""What a chain is run further than asked, so that the neighbouring exits find it there."""


@dataclass(frozen=True, slots=True)
class Exit:
    """A confidence exit: places in `THRESHOLDS` and `MAX_DRAFTS`."""

    threshold_at: int
    draft_at: int

    @property
    def threshold(self) -> float:
        """The confidence below which a draft stops."""
        return THRESHOLDS[self.threshold_at]

    @property
    def max_draft(self) -> int:
        """The most tokens a draft has."""
        return MAX_DRAFTS[self.draft_at]

    def neighbours(self) -> list[Exit]:
        """Returns the exits one step away."""
        steps = ((0, -1), (0, 1), (-1, 0), (1, 0))
        moved = [Exit(self.threshold_at + t, self.draft_at + d) for t, d in steps]
        return [e for e in moved if 0 <= e.threshold_at < len(THRESHOLDS) and 0 <= e.draft_at < len(MAX_DRAFTS)]


Each = Callable[[Callable[[DraftedText], "_Tally"], Sequence[DraftedText]], Iterable["_Tally"]]
"""As `map`: applies the function to each text and gives the results in the texts' order."""

START: Final = Exit(THRESHOLDS.index(0.6), MAX_DRAFTS.index(6))
"""Where tuning begins that knows of nothing better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What decoding some texts with one candidate and one exit would do.

    Attributes:
        counts: by kind of text.
        seconds_per_token: by the kinds' weights.
        plain_seconds_per_token: the same of plain decoding.
    """

    counts: Mapping[str, Counts]
    seconds_per_token: float
    plain_seconds_per_token: float

    @property
    def tokens_per_second(self) -> float:
        """Modelled speed."""
        return 1 / self.seconds_per_token

    @property
    def speedup(self) -> float:
        """Modelled speed over that of plain decoding."""
        return self.plain_seconds_per_token / self.seconds_per_token


class Objective:
    """Scores candidates by a table and the kinds' weights."""

    def __init__(self, costs: CostModel, weights: Mapping[str, float], each: Each = map) -> None:
        """Takes what the score is made of.

        Args:
            costs: of the machine's engines.
            weights: how much each kind of text counts.
            each: applies a function to each of the texts, in their order or several at a time; each has a slot of its own.
        """
        self._costs = costs
        self._weights = weights
        self._each = each
        self._verify: dict[int, list[float]] = {}

    def score(self, bits: Bits, drafted: Sequence[DraftedText], exit_: Exit) -> Score:
        """Replays the decoding of texts: the rounds are those that the runtime would have, one by one.

        Args:
            bits: the candidate's skip set.
            drafted: its chains over the texts.
            exit_: the exit policy.
        """
        tallies: dict[str, _Tally] = {}
        for text, tally in zip(drafted, self._each(lambda text: self._replay(bits, text, exit_), drafted), strict=True):
            tallies.setdefault(text.text.kind, _Tally()).include(tally)
        return self._combine(tallies)

    def _replay(self, bits: Bits, drafted: DraftedText, exit_: Exit) -> _Tally:
        # One cost a text: its few positions cost alike.
        context = _middle(drafted.text)
        verify, draft = self._verify_at(context), self._costs.draft(bits, context)
        tally, count = _Tally(), 1
        while count < drafted.text.length:
            proposed, accepted, alternatives = drafted.propose(count, exit_.threshold, exit_.max_draft, _MARGIN)
            tally.add(proposed, accepted, alternatives, draft.seconds(proposed) + verify[proposed + alternatives])
            count += accepted + 1
        tally.plain = (count - 1) * verify[0]
        return tally

    def tune(self, bits: Bits, drafted: Sequence[DraftedText], start: Exit) -> tuple[Exit, Score]:
        """Finds the best exit for a candidate, step by step from `start`."""
        best, best_score = start, self.score(bits, drafted, start)
        tried = {start}
        moved = True
        while moved:
            moved = False
            for neighbour in best.neighbours():
                if neighbour in tried:
                    continue
                tried.add(neighbour)
                score = self.score(bits, drafted, neighbour)
                if score.seconds_per_token < best_score.seconds_per_token:
                    best, best_score, moved = neighbour, score, True
                    break
        return best, best_score

    def plain_seconds_per_token(self, texts: Sequence[CalibrationText]) -> float:
        """Returns what plain decoding takes for a token, by the kinds' weights."""
        seconds: dict[str, float] = {}
        tokens: dict[str, int] = {}
        for text in texts:
            seconds[text.kind] = seconds.get(text.kind, 0.0) + text.length * self._verify_at(_middle(text))[0]
            tokens[text.kind] = tokens.get(text.kind, 0) + text.length
        return sum(share * seconds[kind] / tokens[kind] for kind, share in self._shares(tokens).items())

    def _combine(self, tallies: Mapping[str, _Tally]) -> Score:
        shares = self._shares({kind: tally for kind, tally in tallies.items() if tally.tokens})
        return Score(
            counts={kind: tally.counts() for kind, tally in tallies.items()},
            seconds_per_token=sum(share * tallies[kind].seconds / tallies[kind].tokens for kind, share in shares.items()),
            plain_seconds_per_token=sum(share * tallies[kind].plain / tallies[kind].tokens for kind, share in shares.items()),
        )

    def _shares(self, kinds: Iterable[str]) -> dict[str, float]:
        """Returns the weights of the kinds that there are, as parts of 1."""
        weights = {kind: self._weights.get(kind, 0.0) for kind in kinds}
        total = sum(weights.values())
        return {kind: weight / total if total else 1 / len(weights) for kind, weight in weights.items()}

    def _verify_at(self, context: int) -> list[float]:
        if context not in self._verify:
            self._verify[context] = self._costs.verify(context)
        return self._verify[context]


def each_with(pool: ThreadPoolExecutor) -> Each:
    """Returns an `Each` that runs in a pool, and leaves no text in work behind when one of them fails."""

    def each(function: Callable[[DraftedText], _Tally], texts: Sequence[DraftedText]) -> list[_Tally]:
        futures = [pool.submit(function, text) for text in texts]
        wait(futures)
        return [future.result() for future in futures]

    return each


@dataclass(slots=True)
class _Tally:
    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    alternatives: int = 0
    seconds: float = 0.0
    plain: float = 0.0
    reached: list[int] = field(default_factory=lambda: [0] * len(MAX_DRAFTS))
    kept: list[int] = field(default_factory=lambda: [0] * len(MAX_DRAFTS))

    @property
    def tokens(self) -> int:
        return self.accepted + self.rounds

    def add(self, proposed: int, accepted: int, alternatives: int, seconds: float) -> None:
        self.rounds += 1
        self.proposed += proposed
        self.accepted += accepted
        self.alternatives += alternatives
        self.seconds += seconds
        for place in range(proposed):
            self.reached[place] += 1
        for place in range(accepted):
            self.kept[place] += 1

    def include(self, other: _Tally) -> None:
        self.rounds += other.rounds
        self.proposed += other.proposed
        self.accepted += other.accepted
        self.alternatives += other.alternatives
        self.seconds += other.seconds
        self.plain += other.plain
        self.reached = [a + b for a, b in zip(self.reached, other.reached, strict=True)]
        self.kept = [a + b for a, b in zip(self.kept, other.kept, strict=True)]

    def counts(self) -> Counts:
        used = sum(n > 0 for n in self.reached)
        return Counts(
            tokens=self.tokens,
            rounds=self.rounds,
            proposed=self.proposed,
            accepted=self.accepted,
            alternatives=self.alternatives,
            reached=tuple(self.reached[:used]),
            kept=tuple(self.kept[:used]),
        )


def _middle(text: CalibrationText) -> int:
    return len(text.prompt) + text.length // 2
