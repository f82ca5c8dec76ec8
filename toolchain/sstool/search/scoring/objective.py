"""Scores a candidate in modelled tokens per second, from real drafting over texts and the latency table.

No clock is read, so the same skip set, texts and table always give the same score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from ssruntime.planning.planner import unlearned
from ssruntime.stopping import MAX_DRAFT_LIMIT, StoppingRule
from sstool.search.drafts.space import Candidate
from sstool.search.log.records import Counts, shares_of
from sstool.search.scoring.draft_sequences import DraftedText
from sstool.search.scoring.rules import neighbours
from sstool.search.speed_model.costs import CostModel
from sstool.search.texts.make import CalibrationText

Each = Callable[[Callable[[DraftedText], "_Tally"], Sequence[DraftedText]], Iterable["_Tally"]]
"""A function such as `map`: applies a function to each text, and returns the results in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The modelled result of decoding some texts with one candidate and one stopping rule.

    Attributes:
        counts: counts of tokens and rounds, by kind of text.
        seconds_per_token: modelled seconds per token, weighted over the kinds of text.
        plain_seconds_per_token: the same for autoregressive decoding (mode `plain`).
    """

    counts: Mapping[str, Counts]
    seconds_per_token: float
    plain_seconds_per_token: float

    @property
    def tokens_per_second(self) -> float:
        """The modelled speed."""
        return 1 / self.seconds_per_token

    @property
    def speedup(self) -> float:
        """The modelled speed over that of autoregressive decoding."""
        return self.plain_seconds_per_token / self.seconds_per_token


class Objective:
    """Scores candidates by a speed model and the weights of the kinds of text."""

    def __init__(self, costs: CostModel, weights: Mapping[str, float], each: Each = map) -> None:
        """Takes the parts of the score.

        Args:
            costs: speed model of this machine.
            weights: weight of each kind of text.
            each: function that applies another to each text, one by one or in parallel; every text has its
                own slot.
        """
        self._costs = costs
        self._weights = weights
        self._each = each
        self._verify: dict[int, list[float]] = {}

    def score(self, candidate: Candidate, drafted: Sequence[DraftedText], rule: StoppingRule) -> Score:
        """Returns a candidate's score from replaying the texts in the rounds that the runtime would run.

        Args:
            candidate: the candidate.
            drafted: draft sequences of the candidate over the texts.
            rule: stopping rule.
        """
        tallies: dict[str, _Tally] = {}
        for text, tally in zip(drafted, self._each(lambda text: self._replay(candidate, text, rule), drafted), strict=True):
            tallies.setdefault(text.text.kind, _Tally()).include(tally)
        return self._combine(tallies)

    def _replay(self, candidate: Candidate, drafted: DraftedText, rule: StoppingRule) -> _Tally:
        """Returns the counts and modelled seconds of decoding one text."""
        # The costs at the middle of the text serve for all its positions, which are close together.
        context = _middle(drafted.text)
        verify, draft = self._verify_at(context), self._costs.draft(candidate, context)
        tally, count, pending, policy = _Tally(), 1, 1, rule.policy(unlearned(), drafted.text.kind)
        while count < drafted.text.length:
            before = pending - 1
            proposed, accepted, alternatives, pending = drafted.propose(count, rule, policy, pending=pending)
            policy.observe(proposed, accepted - (pending - 1), accepted + 1)
            tally.add(proposed, accepted, alternatives, draft.seconds(proposed) + verify[before + proposed + alternatives])
            count += accepted + 1
        tally.plain = (count - 1) * verify[0]
        return tally

    def tune(self, candidate: Candidate, drafted: Sequence[DraftedText], start: StoppingRule) -> tuple[StoppingRule, Score]:
        """Returns a candidate's best stopping rule and its score, found by hill climbing from `start`."""
        best, best_score = start, self.score(candidate, drafted, start)
        tried = {start}
        moved = True
        while moved:
            moved = False
            for neighbour in neighbours(best):
                if neighbour in tried:
                    continue
                tried.add(neighbour)
                score = self.score(candidate, drafted, neighbour)
                if score.seconds_per_token < best_score.seconds_per_token:
                    best, best_score, moved = neighbour, score, True
                    break
        return best, best_score

    def plain_seconds_per_token(self, texts: Sequence[CalibrationText]) -> float:
        """Returns the seconds per token of autoregressive decoding, weighted over the kinds of text."""
        seconds: dict[str, float] = {}
        tokens: dict[str, int] = {}
        for text in texts:
            seconds[text.kind] = seconds.get(text.kind, 0.0) + text.length * self._verify_at(_middle(text))[0]
            tokens[text.kind] = tokens.get(text.kind, 0) + text.length
        return sum(share * seconds[kind] / tokens[kind] for kind, share in shares_of(self._weights, tokens).items())

    def _combine(self, tallies: Mapping[str, _Tally]) -> Score:
        """Returns the score of the tallies by kind of text."""
        shares = shares_of(self._weights, [kind for kind, tally in tallies.items() if tally.tokens])
        return Score(
            counts={kind: tally.counts() for kind, tally in tallies.items()},
            seconds_per_token=sum(share * tallies[kind].seconds / tallies[kind].tokens for kind, share in shares.items()),
            plain_seconds_per_token=sum(share * tallies[kind].plain / tallies[kind].tokens for kind, share in shares.items()),
        )

    def _verify_at(self, context: int) -> list[float]:
        if context not in self._verify:
            self._verify[context] = self._costs.verify(context)
        return self._verify[context]


def each_with(pool: ThreadPoolExecutor) -> Each:
    """Returns an `Each` that runs in a thread pool; if a text fails, it raises after all others ended."""

    def each(function: Callable[[DraftedText], _Tally], texts: Sequence[DraftedText]) -> list[_Tally]:
        futures = [pool.submit(function, text) for text in texts]
        wait(futures)
        return [future.result() for future in futures]

    return each


@dataclass(slots=True)
class _Tally:
    """Counts and modelled seconds of some rounds; see `records.Counts`."""

    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    alternatives: int = 0
    seconds: float = 0.0
    plain: float = 0.0
    reached: list[int] = field(default_factory=lambda: [0] * MAX_DRAFT_LIMIT)
    kept: list[int] = field(default_factory=lambda: [0] * MAX_DRAFT_LIMIT)

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
