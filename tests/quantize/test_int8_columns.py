"""Integers and scales of matrices: the error is bounded, and clipping helps where a few weights are large."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sstool.quantize.formats.int8_columns import FULL_LEVELS, SAFE_LEVELS, column_scales, rounded

LARGEST_ACTIVATION = 255
LARGEST_16_BITS = 2**15 - 1


def restored(matrix: NDArray[np.float32], scales: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    return rounded(matrix, scales, levels=levels).astype(np.float32) * scales


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**32 - 1), st.sampled_from([7, SAFE_LEVELS, FULL_LEVELS]))
@settings(max_examples=60, deadline=None)
def test_an_unclipped_weight_is_off_by_half_a_step_at_most(rows: int, columns: int, seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    matrix = (random.standard_normal((rows, columns)) * random.uniform(1e-6, 1e3, columns)).astype(np.float32)
    scales = column_scales(matrix, None, levels=levels, shrinkings=(1.0,))
    integers = rounded(matrix, scales, levels=levels)
    assert np.abs(integers.astype(int)).max() == levels
    assert (np.abs(integers * scales - matrix) <= 0.5001 * scales).all()


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_best_candidate_is_never_worse_than_no_clipping(rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = random.standard_t(3, (rows, 9)).astype(np.float32)
    importance = random.uniform(0.01, 10, rows).astype(np.float32)
    errors = []
    for shrinkings in ((1.0,), (1.0, 0.8, 0.6)):
        scales = column_scales(matrix, importance, levels=7, shrinkings=shrinkings)
        errors.append((importance[:, None] * (restored(matrix, scales, 7) - matrix) ** 2).sum(axis=0))
    assert (errors[1] <= errors[0] * 1.00001 + 1e-9).all()


def test_an_outlier_of_little_importance_is_clipped() -> None:
    matrix = np.random.default_rng(0).standard_normal((256, 1)).astype(np.float32)
    matrix[0] = 20.0
    importance = np.ones(256, dtype=np.float32)
    importance[0] = 1e-6
    scale = column_scales(matrix, importance, levels=7)
    assert scale[0] < 20.0 / 7


def test_columns_of_zeros_stay_zero() -> None:
    matrix = np.zeros((8, 3), dtype=np.float32)
    scales = column_scales(matrix, None, levels=FULL_LEVELS)
    assert np.isfinite(scales).all()
    assert not rounded(matrix, scales, levels=FULL_LEVELS).any()


def test_large_matrices_are_handled_in_parts_with_the_same_result() -> None:
    matrix = np.random.default_rng(1).standard_normal((2048, 4100)).astype(np.float32)
    scales = column_scales(matrix, None, levels=FULL_LEVELS)
    np.testing.assert_array_equal(scales[-50:], column_scales(matrix[:, -50:], None, levels=FULL_LEVELS))
    np.testing.assert_array_equal(
        rounded(matrix, scales, levels=FULL_LEVELS)[:, -50:], rounded(matrix[:, -50:], scales[-50:], levels=FULL_LEVELS)
    )


def test_weights_of_seven_bits_cannot_saturate_16_bits() -> None:
    assert 2 * SAFE_LEVELS * LARGEST_ACTIVATION <= LARGEST_16_BITS < 2 * FULL_LEVELS * LARGEST_ACTIVATION
