"""Codes of 4 bits: the error is bounded, and each block takes the better of its two zero points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sstool.quantize.formats.int4_blocks import BlockScales, Int4Blocks, codes


def restored(matrix: NDArray[np.float32], chosen: BlockScales) -> NDArray[np.float32]:
    scales, zeros = (values.repeat(chosen.block, axis=0)[: len(matrix)] for values in (chosen.scales, chosen.zeros))
    return (codes(matrix, chosen)[: len(matrix)].astype(np.float32) - zeros) * scales


def squared(matrix: NDArray[np.float32], chosen: BlockScales) -> NDArray[np.float32]:
    return (restored(matrix, chosen) - matrix) ** 2


@given(st.integers(1, 150), st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([32, 64, 128]))
@settings(max_examples=60, deadline=None)
def test_an_unclipped_weight_is_off_by_a_step_at_most(rows: int, columns: int, seed: int, block: int) -> None:
    random = np.random.default_rng(seed)
    matrix = (random.standard_normal((rows, columns)) * random.uniform(1e-6, 1e3, columns)).astype(np.float32)
    chosen = Int4Blocks(block).choose(matrix, None, (1.0,))
    steps = np.abs(chosen.scales).repeat(block, axis=0)[:rows]
    assert (np.abs(restored(matrix, chosen) - matrix) <= 1.0001 * steps).all()
    assert chosen.scales.shape == chosen.zeros.shape == (-(-rows // block), columns)


@given(st.integers(2, 90), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_best_candidate_is_never_worse_than_no_clipping(rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = random.standard_t(3, (rows, 9)).astype(np.float32)
    importance = random.uniform(0.01, 10, rows).astype(np.float32)
    errors = [
        (importance[:, None] * squared(matrix, Int4Blocks(32).choose(matrix, importance, some))).sum(axis=0)
        for some in ((1.0,), Int4Blocks(32).clipping)
    ]
    assert (errors[1] <= errors[0] * 1.00001 + 1e-9).all()


def test_weights_of_one_sign_use_all_codes() -> None:
    matrix = np.linspace(0.0, 15.0, 32, dtype=np.float32)[:, None]
    chosen = Int4Blocks(32).choose(matrix, None, (1.0,))
    assert chosen.zeros.item() == 0
    assert set(codes(matrix, chosen).ravel()) == set(range(16))


def test_the_largest_weight_of_a_symmetric_block_is_exact() -> None:
    matrix = np.array([-8.0, 7.0, 3.0, -1.0] * 8, dtype=np.float32)[:, None]
    chosen = Int4Blocks(32).choose(matrix, None, (1.0,))
    np.testing.assert_array_equal(restored(matrix, chosen), matrix)


def test_blocks_of_zeros_stay_zero() -> None:
    matrix = np.zeros((40, 3), dtype=np.float32)
    chosen = Int4Blocks(32).choose(matrix, None, Int4Blocks(32).clipping)
    assert np.isfinite(chosen.scales).all()
    assert not restored(matrix, chosen).any()


@pytest.mark.parametrize("block", [32, 128])
def test_large_matrices_are_handled_in_parts_with_the_same_result(block: int) -> None:
    matrix = np.random.default_rng(1).standard_normal((2048, 4100)).astype(np.float32)
    whole, part = Int4Blocks(block).choose(matrix, None, (1.0, 0.9)), Int4Blocks(block).choose(matrix[:, -50:], None, (1.0, 0.9))
    np.testing.assert_array_equal(whole.scales[:, -50:], part.scales)
    np.testing.assert_array_equal(codes(matrix, whole)[:, -50:], codes(matrix[:, -50:], part))
