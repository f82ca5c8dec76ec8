"""Scores: arithmetic on counts and costs, tuned exits that no neighbour beats, and weights that do what they say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ssruntime.artifact import SkipSet
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import bits_of
from sstool.search.log.records import COMPLETED, FAILED, STOPPED, LatencyRow
from sstool.search.scoring.evaluate import Evaluator
from sstool.search.scoring.objective import START, Objective, each_with
from sstool.search.settings import GREEDY, SAMPLED
from sstool.search.speed_model.costs import CostModel
from sstool.search.texts.make import CachedText
from tests.search.builders import SKIP, drafted, table
from tests.search.conftest import SETTINGS

WEIGHTS = {SAMPLED: 0.75, GREEDY: 0.25}


def cheap(num_layers: int, part: float) -> CostModel:
    """Costs of a machine on which a kept sublayer costs `part` of a plain step's share, and verifying is nearly free.

    A draft's later steps take half of what its first does.
    """
    share = part / (2 * num_layers)
    verify = tuple(1 + 0.02 * n for n in range(16))
    shares = (share,) * num_layers
    row = LatencyRow(context=1, verify=verify, draft_base=0.01, attention=shares, mlp=shares, sizes=(1.0,), first=(1.0,), later=(0.5,))
    return CostModel(table(row))


def test_a_score_is_what_the_counts_cost(builder: DraftBuilder, texts: list[CachedText]) -> None:
    num_layers = builder.num_layers
    bits, costs = bits_of(SKIP, num_layers), cheap(num_layers, 1.0)
    sampled = [c for c in texts if c.text.kind == SAMPLED]
    score = Objective(costs, WEIGHTS).score(bits, [drafted(builder, c, SKIP) for c in sampled], START)
    counts = score.counts[SAMPLED]
    assert counts.tokens == counts.accepted + counts.rounds
    assert counts.reached[0] == counts.rounds
    assert sum(counts.reached) == counts.proposed
    assert sum(counts.kept) == counts.accepted
    assert counts.alternatives > 0
    # Verifying k tokens beside the committed one costs 1 + 0.02 k here, so the sum needs no more than the counts.
    # A text's last round may draft nothing.
    first = costs.draft(bits, 1).first
    seconds = first * (counts.reached[0] + 0.5 * (counts.proposed - counts.reached[0])) + counts.rounds
    seconds += 0.02 * (counts.proposed + counts.alternatives)
    assert score.seconds_per_token == pytest.approx(seconds / counts.tokens)
    assert score.speedup == pytest.approx(counts.tokens / seconds)


def test_no_neighbour_beats_a_tuned_exit(builder: DraftBuilder, texts: list[CachedText]) -> None:
    bits = bits_of(SKIP, builder.num_layers)
    objective = Objective(cheap(builder.num_layers, 1.0), WEIGHTS)
    counting = [drafted(builder, cached, SKIP) for cached in texts]
    exit_, score = objective.tune(bits, counting, START)
    for neighbour in exit_.neighbours():
        assert objective.score(bits, counting, neighbour).seconds_per_token >= score.seconds_per_token


def test_weights_choose_the_text(builder: DraftBuilder, texts: list[CachedText]) -> None:
    bits, costs = bits_of(SKIP, builder.num_layers), cheap(builder.num_layers, 1.0)
    counting = [drafted(builder, cached, SKIP) for cached in texts]
    only = {kind: Objective(costs, {kind: 1.0}).score(bits, counting, START).seconds_per_token for kind in WEIGHTS}
    mixed = Objective(costs, {SAMPLED: 3.0, GREEDY: 1.0}).score(bits, counting, START).seconds_per_token
    assert mixed == pytest.approx(0.75 * only[SAMPLED] + 0.25 * only[GREEDY])


def test_an_evaluator_stops_the_hopeless_and_survives_failures(builder: DraftBuilder, texts: list[CachedText]) -> None:
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
    good = first.run(0, "recipe", bits_of(SKIP, num_layers))
    bad_set = SkipSet(attention=(0,), mlp=(0,))  # nearly all of the model, and what it misses most
    bad = first.run(1, "block", bits_of(bad_set, num_layers))
    assert (good.status, bad.status) == (COMPLETED, STOPPED)
    assert good.speedup is not None
    assert bad.speedup is not None
    assert bad.speedup < good.speedup
    assert bad.timed is None
    assert good.timed is not None
    assert good.timed.tokens >= 47  # the last round may give more than are kept
    assert good.timed.measured > 0
    # The table of this test makes a plain step a second: a token takes less, and no round costs less than a step.
    assert 1 < good.timed.modelled <= good.timed.tokens
    whole = evaluator().run(1, "block", bits_of(bad_set, num_layers), whole=True)
    assert whole.status == COMPLETED
    everything = first.run(2, "ax", (1,) * (2 * num_layers))
    assert everything.status == FAILED or everything.counts
    again = evaluator().run(0, "recipe", bits_of(SKIP, num_layers))
    assert (again.counts, again.speedup, again.exit_threshold) == (good.counts, good.speedup, good.exit_threshold)


def test_a_failure_by_the_clock_leaves_the_score(builder: DraftBuilder, texts: list[CachedText], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr("sstool.search.scoring.evaluate.run_job", broken)
    costs = cheap(builder.num_layers, 1.0)
    settings = {text.text: builder.engine.settings(SETTINGS.decoding(text.text.kind, text.text.seed)) for text in texts}
    evaluator = Evaluator(builder, texts, Objective(costs, WEIGHTS), costs, settings.__getitem__)
    trial = evaluator.run(0, "recipe", bits_of(SKIP, builder.num_layers))
    assert trial.status == COMPLETED
    assert trial.speedup is not None
    assert trial.timed is None


def test_texts_at_a_time_change_no_count(builder: DraftBuilder, texts: list[CachedText]) -> None:
    bits, costs = bits_of(SKIP, builder.num_layers), cheap(builder.num_layers, 1.0)
    one_by_one = Objective(costs, WEIGHTS).tune(bits, [drafted(builder, cached, SKIP) for cached in texts], START)
    with ThreadPoolExecutor(3) as pool:
        together = Objective(costs, WEIGHTS, each_with(pool)).tune(bits, [drafted(builder, cached, SKIP) for cached in texts], START)
    assert together == one_by_one
