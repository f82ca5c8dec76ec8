"""Scores follow from counts, costs and weights, and no neighbour beats a tuned stopping rule."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ssruntime.artifact import SkipSet
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import candidate_of, sharing
from sstool.search.log.records import COMPLETED, FAILED, STOPPED, DraftCosts, LatencyRow
from sstool.search.scoring.evaluate import Evaluator
from sstool.search.scoring.objective import Objective, each_with
from sstool.search.scoring.rules import START, neighbours
from sstool.search.settings import GREEDY, SAMPLED
from sstool.search.speed_model.costs import CostModel
from sstool.search.texts.make import CachedText
from tests.search.builders import SKIP, drafted, table
from tests.search.conftest import SETTINGS

WEIGHTS = {SAMPLED: 0.75, GREEDY: 0.25}


def cheap(num_layers: int, part: float) -> CostModel:
    """Returns the costs of a made-up machine on which verifying is nearly free.

    A kept sublayer costs `part` of its share of an autoregressive step. A later draft step takes half the
    time of the first one.
    """
    share = part / (2 * num_layers)
    verify = tuple(1 + 0.02 * n for n in range(16))
    shares = (share,) * num_layers
    draft = DraftCosts(base=0.01, attention=shares, mlp=shares, sizes=(1.0,), first=(1.0,), later=(0.5,))
    return CostModel(table(LatencyRow(context=1, verify=verify, draft=draft)))


def test_a_score_is_the_cost_of_the_counts(builder: DraftBuilder, texts: list[CachedText]) -> None:
    num_layers = builder.num_layers
    bits, costs = candidate_of(SKIP, num_layers), cheap(num_layers, 1.0)
    sampled = [c for c in texts if c.text.kind == SAMPLED]
    score = Objective(costs, WEIGHTS).score(bits, [drafted(builder, c, SKIP) for c in sampled], START)
    counts = score.counts[SAMPLED]
    assert counts.tokens == counts.accepted + counts.rounds
    assert counts.reached[0] == counts.rounds
    assert sum(counts.reached) == counts.proposed
    assert sum(counts.kept) == counts.accepted
    assert counts.alternatives > 0
    # Verifying k proposed tokens costs 1 + 0.02 k here, so the counts determine the total cost.
    # The last round of a text may draft nothing.
    first = costs.draft(bits, 1).first
    seconds = first * (counts.reached[0] + 0.5 * (counts.proposed - counts.reached[0])) + counts.rounds
    seconds += 0.02 * (counts.proposed + counts.alternatives)
    # A pass after an accepted alternative has one row more, which the counts do not tell.
    most = seconds + 0.02 * counts.rounds
    assert seconds / counts.tokens < score.seconds_per_token < most / counts.tokens
    assert counts.tokens / most < score.speedup < counts.tokens / seconds


def test_no_neighbour_beats_a_tuned_stopping_rule(builder: DraftBuilder, texts: list[CachedText]) -> None:
    bits = candidate_of(SKIP, builder.num_layers)
    objective = Objective(cheap(builder.num_layers, 1.0), WEIGHTS)
    counting = [drafted(builder, cached, SKIP) for cached in texts]
    rule, score = objective.tune(bits, counting, START)
    for neighbour in neighbours(rule):
        assert objective.score(bits, counting, neighbour).seconds_per_token >= score.seconds_per_token


def test_scores_are_weighted_over_the_kinds_of_text(builder: DraftBuilder, texts: list[CachedText]) -> None:
    bits, costs = candidate_of(SKIP, builder.num_layers), cheap(builder.num_layers, 1.0)
    counting = [drafted(builder, cached, SKIP) for cached in texts]
    only = {kind: Objective(costs, {kind: 1.0}).score(bits, counting, START).seconds_per_token for kind in WEIGHTS}
    mixed = Objective(costs, {SAMPLED: 3.0, GREEDY: 1.0}).score(bits, counting, START).seconds_per_token
    assert mixed == pytest.approx(0.75 * only[SAMPLED] + 0.25 * only[GREEDY])


def test_an_evaluator_stops_hopeless_candidates_and_continues_after_failures(builder: DraftBuilder, texts: list[CachedText]) -> None:
    num_layers = builder.num_layers

    def evaluator() -> Evaluator:
        costs = cheap(num_layers, 1.0)
        return Evaluator(
            builder,
            texts,
            Objective(costs, WEIGHTS),
            costs,
            lambda text: builder.engine.settings(SETTINGS.decoding(text.kind, text.seed)),
        )

    first = evaluator()
    good = first.run(0, "recipe", candidate_of(SKIP, num_layers))
    bad_set = SkipSet(attention=(0,), mlp=(0,))  # a slow draft without the sublayers that matter most
    bad = first.run(1, "block", candidate_of(bad_set, num_layers))
    assert (good.status, bad.status) == (COMPLETED, STOPPED)
    assert good.speedup is not None
    assert bad.speedup is not None
    assert bad.speedup < good.speedup
    assert bad.timed is None
    assert good.timed is not None
    assert good.timed.tokens >= 47  # the last round may emit more tokens than are kept
    assert good.timed.measured > 0
    # An autoregressive step takes 1 s in this test's table. A round takes at least as long, and a token less.
    assert 1 < good.timed.modelled <= good.timed.tokens
    whole = evaluator().run(1, "block", candidate_of(bad_set, num_layers), whole=True)
    assert whole.status == COMPLETED
    everything = first.run(2, "ax", sharing((1,) * (2 * num_layers)))
    assert everything.status == FAILED or everything.counts
    again = evaluator().run(0, "recipe", candidate_of(SKIP, num_layers))
    assert (again.counts, again.speedup, again.stopping) == (good.counts, good.speedup, good.stopping)


def test_a_candidate_whose_timed_run_fails_keeps_its_score(
    builder: DraftBuilder, texts: list[CachedText], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr("sstool.search.scoring.evaluate.run_job", broken)
    costs = cheap(builder.num_layers, 1.0)
    settings = {text.text: builder.engine.settings(SETTINGS.decoding(text.text.kind, text.text.seed)) for text in texts}
    evaluator = Evaluator(builder, texts, Objective(costs, WEIGHTS), costs, settings.__getitem__)
    trial = evaluator.run(0, "recipe", candidate_of(SKIP, builder.num_layers))
    assert trial.status == COMPLETED
    assert trial.speedup is not None
    assert trial.timed is None


def test_texts_in_parallel_give_the_same_score(builder: DraftBuilder, texts: list[CachedText]) -> None:
    bits, costs = candidate_of(SKIP, builder.num_layers), cheap(builder.num_layers, 1.0)
    one_by_one = Objective(costs, WEIGHTS).tune(bits, [drafted(builder, cached, SKIP) for cached in texts], START)
    with ThreadPoolExecutor(3) as pool:
        together = Objective(costs, WEIGHTS, each_with(pool)).tune(bits, [drafted(builder, cached, SKIP) for cached in texts], START)
    assert together == one_by_one
