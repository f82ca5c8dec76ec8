"""Drafting that does not pay is given up, at a bounded price; what is deterministic stays so."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ssruntime import GenerationConfig
from ssruntime.planning.acceptance import Calibration, Evidence
from ssruntime.planning.batch_costs import BatchCosts
from ssruntime.planning.costs import PassCosts
from ssruntime.planning.planner import EXPLORING, Planner, RequestPlanner
from tests.runtime.conftest import OpenScript
from tests.runtime.scripted import random_script

SCRIPT = random_script(3, agreement=0.5, scale=1.0, history=True)
ROWS = tuple(1.0 + 0.1 * n for n in range(16))
COSTS = PassCosts(contexts=(0,), verify=(ROWS,), drafted=(ROWS,), draft=(0.3,))
GOOD = Calibration(weights=(2.5, 0.0, 0.0, 0.0), log_odds=(2.5,))
BAD = Calibration(weights=(-3.0, 0.0, 0.0, 0.0), log_odds=(-3.0,))
EVIDENCE = Evidence(0.9, 0.9, 1.0)


QUIET = (1.0, 1.0)


def decode(
    planner: Planner, accepts: float, rounds: int, seed: int = 0, load: tuple[float, float] = QUIET, noise: float = 0.0
) -> tuple[float, float]:
    """Returns the tokens and seconds of one request whose draft tokens are accepted with this probability.

    Rounds with and without draft steps cost `load` times the table; recorded times vary by `noise`, in nats.
    """
    random, request = np.random.default_rng(seed), RequestPlanner(planner, "greedy", 12)
    errors = np.random.default_rng(seed + 1)
    tokens = seconds = 0.0
    for _ in range(rounds):
        drafted = 0
        if request.begin(100, 12):
            drafted = 1
            while request.goes_on(drafted, EVIDENCE):
                drafted += 1
        accepted = 0
        while accepted < drafted and random.random() < accepts:
            accepted += 1
        took = COSTS.at(100).seconds(drafted + 1, drafted) * load[not drafted]
        planner.costs.record(drafted + 1, drafted, 100, took * errors.lognormal(0.0, noise))
        request.observe(accepted, accepted + 1)
        tokens += accepted + 1
        seconds += took
    return tokens, seconds


@pytest.mark.parametrize("learns", [True, False])
def test_a_draft_known_to_be_bad_costs_what_exploring_may_cost(learns: bool) -> None:
    tokens, seconds = decode(Planner(BatchCosts(COSTS, learns=False), BAD, learns=learns), 0.02, 2000)
    assert seconds / tokens <= 1.0 + EXPLORING


def test_a_draft_that_is_worse_than_it_was_is_given_up_soon() -> None:
    tokens, seconds = decode(Planner(BatchCosts(COSTS, learns=False), GOOD, learns=True), 0.02, 60)
    assert seconds / tokens <= 1.25  # a single short request
    planner = Planner(BatchCosts(COSTS, learns=False), GOOD, learns=True)
    results = [decode(planner, 0.02, 100, seed) for seed in range(30)]
    assert sum(seconds for _, seconds in results) / sum(tokens for tokens, _ in results) <= 1.05


def test_a_draft_that_is_better_than_it_was_is_taken_up() -> None:
    planner = Planner(BatchCosts(COSTS, learns=False), BAD, learns=True)
    for seed in range(100):
        decode(planner, 0.95, 200, seed)
    tokens, seconds = decode(planner, 0.95, 200)
    assert tokens / seconds > 1.5


def test_a_good_draft_is_used_from_the_first_round() -> None:
    tokens, seconds = decode(Planner(BatchCosts(COSTS, learns=False), GOOD, learns=True), 0.92, 4)
    assert tokens / seconds > 1.0
    assert RequestPlanner(Planner(BatchCosts(COSTS, learns=False), GOOD, learns=True), "greedy", 12).begin(100, 12)
    assert not RequestPlanner(Planner(BatchCosts(COSTS, learns=False), BAD, learns=True), "greedy", 12).begin(100, 12)


@pytest.mark.parametrize("accepts", [0.75, 0.55, 0.3])
@pytest.mark.parametrize("during", [(1.8, 1.8), (1.8, 1.0), (0.5, 1.0)])
def test_what_a_burst_of_load_taught_is_unlearned(during: tuple[float, float], accepts: float) -> None:
    """During the burst, rounds with and without draft steps cost so many times as much."""
    costs = BatchCosts(COSTS, learns=True)
    planner = Planner(costs, Calibration(weights=(math.log(accepts / (1 - accepts)), 0.0, 0.0, 0.0), log_odds=(0.0,)), learns=True)
    requests = [
        decode(planner, accepts, 400, seed, load, noise=0.05) for seed, load in enumerate([QUIET] * 4 + [during] * 4 + [QUIET] * 16)
    ]
    speeds = [tokens * ROWS[0] / seconds for tokens, seconds in requests]
    assert min(speeds[-4:]) >= 0.97 * max(1.0, min(speeds[2:4]))


def test_threads_share_a_planner(open_script: OpenScript) -> None:
    """Texts are those of each request alone, and the engine's planner survives many requests at once."""
    how = [GenerationConfig(mode="auto", temperature=0.8, seed=seed, max_new_tokens=50, ignore_eos=True) for seed in range(24)]
    with open_script(SCRIPT, max_sequences=4) as engine:
        alone = [engine.generate([1, 2, 3], one).token_ids for one in how]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda one: engine.generate([1, 2, 3], one).token_ids, how))
    assert together == alone


def test_deterministic_requests_do_not_depend_on_others(open_script: OpenScript) -> None:
    how = GenerationConfig(
        mode="auto", sampling="rejection", temperature=1.0, seed=4, max_new_tokens=60, ignore_eos=True, deterministic=True
    )
    with open_script(SCRIPT) as engine:
        first = engine.generate([1, 2, 3], how)
        for seed in range(5):
            engine.generate([3, 2, 1], GenerationConfig(mode="auto", temperature=1.0, seed=seed, max_new_tokens=60, ignore_eos=True))
        again = engine.generate([1, 2, 3], how)
    assert first.token_ids == again.token_ids
    assert (first.stats.rounds, first.stats.proposed) == (again.stats.rounds, again.stats.proposed)
