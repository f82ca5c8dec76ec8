"""The acceptance rules preserve the target's distribution: by exact enumeration, and in real decoding."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ssruntime import GenerationConfig
from ssruntime.acceptance import CoupledAcceptance
from ssruntime.acceptance.equality import accept_equal
from ssruntime.acceptance.rejection import RejectionAcceptance
from ssruntime.config import CheckpointDefaults, DecodeSettings, complete
from ssruntime.proposal import Proposal
from ssruntime.sampling.distribution import Distribution, accept_probability, draw, residual
from ssruntime.sampling.filters import filtered, probabilities
from tests.runtime.conftest import OpenScript
from tests.runtime.scripted import Script, proposal_of, step_of

Path = tuple[int, ...]
Law = Mapping[Path, float]
"""The probability of each path of tokens."""
Model = Callable[[Path], Distribution]
"""The next token's distribution after a path of tokens."""


def law_of_target(target: Model, vocab: int, length: int) -> Law:
    """Returns the probability of each path of `length` tokens."""
    law = {}
    for path in itertools.product(range(vocab), repeat=length):
        law[path] = float(np.prod([target(path[:i]).prob(path[i]) for i in range(length)]))
    return law


def drafts(draft: Model, stops: Callable[[Path], bool], max_draft: int) -> Law:
    """Returns every draft sequence that can be proposed, with its probability.

    `stops` is called with the path before each draft token, and returns whether that token is the last one.
    """
    found: dict[Path, float] = {}

    def grow(path: Path, weight: float) -> None:
        for token in range(max(draft(path).ids) + 1):
            prob = weight * draft(path).prob(token)
            if prob == 0.0:
                continue
            longer = (*path, token)
            if len(longer) == max_draft or stops(path):
                found[longer] = found.get(longer, 0.0) + prob
            else:
                grow(longer, prob)

    grow((), 1.0)
    return found


def outcomes(proposals: Path, target: Model, draft: Model) -> Law:
    """Returns what a round of rejection sampling can emit for these proposals, with probabilities."""
    found: dict[Path, float] = defaultdict(float)
    weight = 1.0
    for row, token in enumerate(proposals):
        before = proposals[:row]
        target_probs, draft_probs = target(before), draft(before)
        accept = accept_probability(token, target_probs, draft_probs)
        left = residual(target_probs, draft_probs)
        for replacement, prob in zip(left.ids.tolist(), left.probs.tolist(), strict=True):
            found[(*before, replacement)] += weight * (1.0 - accept) * prob
        weight *= accept
    bonus = target(proposals)
    for token, prob in zip(bonus.ids.tolist(), bonus.probs.tolist(), strict=True):
        found[(*proposals, token)] += weight * prob
    return found


def law_of_rounds(target: Model, draft: Model, stops: Callable[[Path], bool], max_draft: int, length: int) -> Law:
    """Returns the law of the first `length` tokens of speculative decoding, over all drafts and outcomes."""
    law: dict[Path, float] = defaultdict(float)

    def after(path: Path) -> tuple[Model, Model, Callable[[Path], bool]]:
        return (lambda p: target(path + p)), (lambda p: draft(path + p)), (lambda p: stops(path + p))

    # The continuation depends only on the path, so rounds that end in the same path are merged, shortest
    # paths first.
    reached: dict[Path, float] = {(): 1.0}
    while reached:
        path = min(reached, key=len)
        weight = reached.pop(path)
        if len(path) >= length:
            law[path[:length]] += weight
            continue
        here = after(path)
        for proposals, chance in drafts(here[1], here[2], max_draft).items():
            for emitted, prob in outcomes(proposals, here[0], here[1]).items():
                if prob > 0:
                    longer = path + emitted
                    reached[longer[:length]] = reached.get(longer[:length], 0.0) + weight * chance * prob
    return law


def model(seed: int, vocab: int, *, spread: float, config: GenerationConfig | None = None) -> Model:
    """Returns random distributions for every path, filtered by `config`."""
    chosen = None if config is None else settings_of(config)
    known: dict[Path, Distribution] = {}

    def distribution(path: Path) -> Distribution:
        if path not in known:
            logits = (spread * np.random.default_rng([seed, len(path), *path]).standard_normal(vocab)).astype(np.float32)
            if chosen is None:
                known[path] = Distribution(np.arange(vocab), probabilities(np.exp(logits.astype(np.float64))))
            else:
                ids, scores = filtered(logits, chosen)
                known[path] = Distribution(ids, probabilities(scores))
        return known[path]

    return distribution


def settings_of(config: GenerationConfig) -> DecodeSettings:
    return complete(config, CheckpointDefaults(), None)


def assert_same_law(found: Law, expected: Law) -> None:
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)
    for path in {*found, *expected}:
        assert found.get(path, 0.0) == pytest.approx(expected.get(path, 0.0), abs=1e-12), path


NEVER: Final = lambda _: False  # noqa: E731


@pytest.mark.parametrize("vocab", [3, 4])
@pytest.mark.parametrize("max_draft", [1, 2, 3])
@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
def test_rejection_sampling_preserves_the_distribution_exactly(vocab: int, max_draft: int, spread: float) -> None:
    for seed in range(3):
        target, draft = model(seed, vocab, spread=spread), model(100 + seed, vocab, spread=spread)
        length = max_draft + 1
        assert_same_law(law_of_rounds(target, draft, NEVER, max_draft, length), law_of_target(target, vocab, length))


@pytest.mark.parametrize("vocab", [3, 4])
@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7])
def test_rejection_sampling_preserves_the_distribution_with_early_stopping(vocab: int, threshold: float) -> None:
    """A draft stops after a token whose confidence is below the threshold; that token is still verified.

    The confidence is the highest probability of the draft distribution from which the token is drawn.
    """
    lengths = set()
    for seed in range(4):
        target, draft = model(seed, vocab, spread=2.0), model(100 + seed, vocab, spread=2.0)

        def stops(path: Path, draft: Model = draft) -> bool:
            return float(draft(path).probs.max()) < threshold

        lengths |= {len(p) for p in drafts(draft, stops, 3)}
        assert_same_law(law_of_rounds(target, draft, stops, 3, 3), law_of_target(target, vocab, 3))
    assert len(lengths) > 1


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(temperature=0.7),
        GenerationConfig(top_k=2),
        GenerationConfig(top_p=0.7),
        GenerationConfig(min_p=0.3),
        GenerationConfig(temperature=1.4, top_k=3, top_p=0.9, min_p=0.05),
    ],
)
@pytest.mark.parametrize("max_draft", [1, 3])
def test_rejection_sampling_preserves_the_distribution_with_filters(config: GenerationConfig, max_draft: int) -> None:
    """Draft and target keep different tokens, so some tokens have probability 0 in only one of them."""
    for seed in range(3):
        target, draft = model(seed, 4, spread=1.5, config=config), model(100 + seed, 4, spread=1.5, config=config)
        assert_same_law(law_of_rounds(target, draft, NEVER, max_draft, 3), law_of_target(target, 4, 3))


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_rejection_sampling_preserves_the_distribution_with_an_equal_draft(spread: float) -> None:
    target = model(1, 3, spread=spread)
    assert_same_law(law_of_rounds(target, target, NEVER, 2, 3), law_of_target(target, 3, 3))


def test_rejection_acceptance_decides_as_the_pure_functions_do() -> None:
    """For random numbers on a grid, the class makes the decisions that the enumeration sums over."""
    config = settings_of(GenerationConfig(temperature=1.0, sampling="rejection", seed=1))
    random = np.random.default_rng(4)
    target = random.standard_normal((3, 4)).astype(np.float32)
    draft = random.standard_normal((2, 4)).astype(np.float32)

    def distribution(row: NDArray[np.float32]) -> Distribution:
        ids, scores = filtered(row, config)
        return Distribution(ids, probabilities(scores))

    class Dice:
        def __init__(self, numbers: tuple[float, ...]) -> None:
            self.numbers = list(numbers)

        def random(self) -> float:
            return self.numbers.pop(0)

    grid = (0.0, 0.2, 0.45, 0.7, 0.95)
    seen = set()
    for numbers in itertools.product(grid, repeat=5):
        acceptance = RejectionAcceptance(config)
        acceptance._random = Dice(numbers)  # type: ignore[assignment]
        proposal = Proposal()
        for row in draft:
            (token,), _, draft_probs = acceptance.sample_draft(step_of(row[None]), 0, 2)
            proposal.append(token, "test", draft_probs)
        proposals = proposal.tokens
        emitted = acceptance.accept(step_of(target), proposal, 0).emitted
        dice = list(numbers)
        assert proposals == [draw(distribution(row), dice.pop(0)) for row in draft]
        expected: list[int] = []
        for row, token in enumerate(proposals):
            if dice.pop(0) < accept_probability(token, distribution(target[row]), distribution(draft[row])):
                expected.append(token)
            else:
                expected.append(draw(residual(distribution(target[row]), distribution(draft[row])), dice.pop(0)))
                break
        else:
            expected.append(draw(distribution(target[2]), dice.pop(0)))
        assert emitted == expected
        seen.add(len(emitted))
    assert seen == {1, 2, 3}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda w: sum(w) > 1e-3), st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_cumulative_distribution(weights: list[float], uniform: float) -> None:
    probs = np.array(weights) / sum(weights)
    token = draw(Distribution(np.arange(len(weights))[::-1].copy(), probs), uniform)
    index = len(weights) - 1 - token
    below = float(probs[:index].sum())
    assert below - 1e-12 <= uniform <= below + float(probs[index]) + 1e-12
    assert probs[index] > 0


@given(
    st.lists(st.integers(0, 9), unique=True, min_size=1, max_size=6),
    st.lists(st.integers(0, 9), unique=True, min_size=1, max_size=6),
    st.integers(0, 1000),
)
def test_residual_is_the_normalized_positive_part_of_target_minus_draft(target_ids: list[int], draft_ids: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    target_probs = Distribution(np.array(target_ids), random.dirichlet(np.ones(len(target_ids))))
    draft_probs = Distribution(np.array(draft_ids), random.dirichlet(np.ones(len(draft_ids))))
    left = {t: max(0.0, target_probs.prob(t) - draft_probs.prob(t)) for t in range(10)}
    found = residual(target_probs, draft_probs)
    total = sum(left.values())
    for token in range(10):
        expected = left[token] / total if total > 0 else target_probs.prob(token)
        assert found.prob(token) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_accept_equal_samples_only_the_rows_that_it_needs(proposals: list[int], samples: list[int]) -> None:
    asked = []

    def target_token(row: int) -> int:
        asked.append(row)
        return samples[row]

    emitted, alternative, _ = accept_equal(proposal_of(proposals), target_token, lambda row, _offset: samples[row])
    assert alternative is None
    agreed = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(proposals, samples, strict=False))))
    assert emitted == samples[: agreed + 1]
    assert asked == list(range(agreed + 1))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**40), max_draft=st.integers(0, 5), temperature=st.floats(0.1, 3), top_p=st.floats(0.1, 1))
def test_coupled_acceptance_emits_the_samples_of_plain_mode_for_any_draft(
    seed: int, max_draft: int, temperature: float, top_p: float
) -> None:
    """For any proposal, the emitted tokens are those that autoregressive decoding samples."""
    config = settings_of(GenerationConfig(seed=seed, temperature=temperature, top_p=top_p))
    random = np.random.default_rng(seed)
    rows = (2 * random.standard_normal((max_draft + 1, 7))).astype(np.float32)
    plain = [CoupledAcceptance(config).sample(step_of(row[None]), 40 + i) for i, row in enumerate(rows)]
    for proposals in (random.integers(0, 7, max_draft).tolist(), plain[:max_draft]):
        emitted = CoupledAcceptance(config).accept(step_of(rows), proposal_of(proposals), 40).emitted
        assert emitted == plain[: len(emitted)]
    assert len(emitted) == max_draft + 1


@pytest.mark.parametrize("position", [0, 1, 4095, 123_456])
def test_coupled_samples_have_the_filtered_distribution(position: int) -> None:
    """The samples of many seeds are compared by chi-square (5 degrees of freedom: 40 has chance 1e-7)."""
    logits = np.array([1.0, 0.2, -0.5, 2.0, 0.0, -1.0], dtype=np.float32)
    base = settings_of(GenerationConfig(temperature=0.9, seed=0))
    expected = probabilities(filtered(logits, base)[1])
    count = 4000
    samples = Counter(
        CoupledAcceptance(dataclasses.replace(base, seed=seed)).sample(step_of(logits[None]), position) for seed in range(count)
    )
    assert chi_square([samples[t] for t in range(6)], count * expected) < 40


def test_coupled_samples_at_neighbouring_positions_are_independent() -> None:
    logits = np.zeros((1, 3), dtype=np.float32)
    acceptance = CoupledAcceptance(settings_of(GenerationConfig(temperature=1.0, seed=9)))
    samples = [acceptance.sample(step_of(logits), p) for p in range(9001)]
    pairs = Counter(itertools.pairwise(samples))
    assert chi_square([pairs[a, b] for a in range(3) for b in range(3)], np.full(9, 1000.0)) < 60


def chi_square(found: list[int], expected: NDArray[np.float64]) -> float:
    """Returns Pearson's statistic."""
    return float(((np.array(found) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    "filters",
    [{}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 1.3, "top_k": 3}, {"min_p": 0.2}],
    ids=["none", "top_p", "top_k", "min_p"],
)
@pytest.mark.parametrize("stopping", [{"exit": "fixed", "max_draft": 3}, {"exit": "confidence", "exit_threshold": 0.5, "max_draft": 3}])
def test_real_engines_sample_from_the_exact_distribution_in_every_mode(
    open_script: OpenScript, filters: dict[str, object], stopping: dict[str, object]
) -> None:
    """Compares counts of three-token texts from real engines with exact probabilities from the table."""
    random = np.random.default_rng(17)
    vocab, length, count = 4, 3, 1500
    table = random.standard_normal((4, vocab, vocab)).astype(np.float32)
    script = Script(verify=table, draft=(0.6 * table + 0.8 * random.standard_normal(table.shape)).astype(np.float32))
    config = GenerationConfig.from_mapping({"temperature": 1.0, **filters, **stopping, "max_new_tokens": length, "ignore_eos": True})
    chosen = settings_of(config)

    def target(path: Path) -> Distribution:
        ids, scores = filtered(script.target([1, *path]), chosen)
        return Distribution(ids, probabilities(scores))

    expected = law_of_target(target, vocab, length)
    with open_script(script) as engine:
        for mode, sampling in (("speculative", "rejection"), ("plain", "rejection"), ("speculative", "coupled")):
            how = dataclasses.replace(config, mode=mode, sampling=sampling)
            found: Counter[Path] = Counter()
            accepted = 0
            for seed in range(count):
                completion = engine.generate([1], dataclasses.replace(how, seed=seed))
                found[tuple(completion.token_ids)] += 1
                accepted += completion.stats.accepted
            assert all(expected[path] > 0 for path in found)
            # Paths that are expected less than 5 times share a cell. With at most 64 cells, 140 has
            # probability 1e-7.
            common = [p for p, prob in expected.items() if count * prob >= 5]
            rest = max(1.0 - sum(expected[p] for p in common), 1e-9)
            cells = [*(found[p] for p in common), count - sum(found[p] for p in common)]
            assert chi_square(cells, count * np.array([*(expected[p] for p in common), rest])) < 140
            assert (accepted > 0) == (mode == "speculative")
