"""The noise depends only on seed, position and token: not on the platform, nor on the order of calls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssruntime.sampling.noise import CoupledNoise, gumbel, prompt_seed

# These values never change: with other noise, a given seed would give another text.
GOLDEN = [
    (0, 0, 0, 2938947361638684862, -0.6080447467222646),
    (0, 0, 1, 13552185243459649478, 1.1765519653792003),
    (1, 0, 0, 1102986659610786219, -1.0356250033460217),
    (0, 1, 0, 8484465609261173931, 0.2527642368976135),
    (7, 5, 4095, 18174465480489931032, 4.20839145826834),
    (7, 5, 4096, 4265431889803147254, -0.38140766272842247),
    (2**63 - 1, 123456, 151935, 12935941533099627436, 1.0359804232769556),
    (42, 2047, 3, 14621145981250405350, 1.459213302958428),
]
GOLDEN_SEEDS = [
    (0, 0, 0),
    (0, 1, 2440950710608614359),
    (0, 2, 8226343694796210948),
    (7, 1, 2021251017632032385),
    (2**63 - 1, 0, 2**63 - 1),
    (2**63 - 1, 5, 6860493502913495487),
    (12345, 1000, 3054189007644268840),
]


def philox_word(seed: int, position: int, token: int) -> int:
    """Returns a word of Philox4x64-10 (Salmon et al., SC 2011), computed with Python integers."""
    mask = 2**64 - 1
    counter = [token // 4 + 1, position, 0, 0]
    key = [seed, 0x5353544F4F4C]
    for step in range(10):
        if step:
            key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [(second >> 64) ^ counter[1] ^ key[0], second & mask, (first >> 64) ^ counter[3] ^ key[1], first & mask]
    return counter[token % 4]


def word(seed: int, position: int, token: int) -> int:
    return int(CoupledNoise(seed)._words(position, np.array([token]))[0])


@pytest.mark.parametrize(("seed", "position", "token", "expected_word", "expected"), GOLDEN)
def test_noise_has_its_golden_values(seed: int, position: int, token: int, expected_word: int, expected: float) -> None:
    assert word(seed, position, token) == expected_word == philox_word(seed, position, token)
    assert float(gumbel(seed, position, np.array([token]))[0]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("seed", "index", "expected"), GOLDEN_SEEDS)
def test_prompt_seeds_have_their_golden_values(seed: int, index: int, expected: int) -> None:
    assert prompt_seed(seed, index) == expected


def test_prompt_seeds_are_in_range_and_differ() -> None:
    seeds = [prompt_seed(3, i) for i in range(2000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= s < 2**63 for s in seeds)


@settings(max_examples=200)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(0, 300_000))
def test_noise_is_philox(seed: int, position: int, token: int) -> None:
    expected = philox_word(seed, position, token)
    assert word(seed, position, token) == expected
    uniform = (expected + 0.5) * 2.0**-64
    assert float(CoupledNoise(seed).log_uniform(position, np.array([token]))[0]) == pytest.approx(math.log(uniform), rel=1e-12, abs=1e-15)


requests = st.lists(
    st.tuples(st.integers(0, 60), st.lists(st.sampled_from([0, 1, 7, 4095, 4096, 5000, 8191, 8192, 20_000]), min_size=1, max_size=5)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=50)
@given(st.integers(0, 2**63 - 1), requests)
def test_noise_does_not_depend_on_earlier_calls(seed: int, asked: list[tuple[int, list[int]]]) -> None:
    """Covers one block and several, blocks generated ahead and again, and positions in any order."""
    noise = CoupledNoise(seed)
    for position, ids in asked:
        words = noise._words(position, np.array(ids))
        assert words.tolist() == [philox_word(seed, position, t) for t in ids]


def test_only_recent_positions_are_kept() -> None:
    noise = CoupledNoise(1)
    for position in range(3000):
        noise.log_uniform(position, np.array([position % 9000]))
    assert len(noise._blocks) < 120


def test_noise_is_uniform_and_uncorrelated() -> None:
    """Tests 40,000 values in 100 cells, and the correlation of neighbours in token, position and seed.

    Chi-square with 99 degrees of freedom: 200 has probability 1e-8.
    """
    ids = np.arange(200)
    grid = np.stack([np.exp(CoupledNoise(5).log_uniform(p, ids)) for p in range(200)])
    counts = np.histogram(grid, bins=100, range=(0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 200
    centred = grid - 0.5
    for shifted in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):
        assert abs(float(shifted.mean())) * 12 < 6 / math.sqrt(shifted.size)
    other = np.exp(CoupledNoise(6).log_uniform(0, ids)) - 0.5
    assert abs(float((other * centred[0]).mean())) * 12 < 6 / math.sqrt(200)
