"""The search space knows which drafts exist, and which parts of each fit into the memory for own weights."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssruntime.artifact import LowBitSet, SkipSet
from sstool.graph.sublayers import Sublayer
from sstool.search.drafts.space import Candidate, DraftSpace, candidate_of, sharing

LAYERS = 3
SIZES = {
    None: 50,
    **{Sublayer(n, "attention"): 10 + n for n in range(LAYERS)},
    **{Sublayer(n, "mlp"): 30 + n for n in range(LAYERS)},
}
ROOMS = st.floats(0, 1.2 * sum(SIZES.values()))
SKIPPED = st.tuples(*[st.integers(0, 1)] * (2 * LAYERS))


def size(candidate: Candidate) -> int:
    """Returns the bytes of a candidate's own weights."""
    parts = [Sublayer(n % LAYERS, "attention" if n < LAYERS else "mlp") for n, own in enumerate(candidate.int4) if own]
    return sum(SIZES[part] for part in parts) + candidate.int4_head * SIZES[None]


@given(SKIPPED, ROOMS)
def test_own_weights_fit_and_leave_no_room_for_another_kept_part(skipped: tuple[int, ...], room: float) -> None:
    found = DraftSpace(num_layers=LAYERS, sizes=SIZES, room=room).with_own_weights(skipped)
    assert found.skipped == skipped
    assert size(found) <= room
    assert not any(out and own for out, own in zip(found.skipped, found.int4, strict=True))
    left = room - size(found)
    for n, (out, own) in enumerate(zip(found.skipped, found.int4, strict=True)):
        if not out and not own:
            assert SIZES[Sublayer(n % LAYERS, "attention" if n < LAYERS else "mlp")] > left
    assert found.int4_head or SIZES[None] > left


@given(SKIPPED, ROOMS)
def test_a_candidate_is_found_again_from_its_parts_and_its_point(skipped: tuple[int, ...], room: float) -> None:
    space = DraftSpace(num_layers=LAYERS, sizes=SIZES, room=room)
    for candidate in space.of_each_kind([skipped]):
        assert candidate_of(candidate.skip_set(), LAYERS, candidate.low_bit_set()) == candidate
        assert len(space.point(candidate)) == space.num_numbers
        assert space.at(space.point(candidate)) == candidate


@pytest.mark.parametrize("room", [0.0, 5.0, 60.0, 1e9])
def test_points_are_counted_and_each_is_a_draft(room: float) -> None:
    space = DraftSpace(num_layers=LAYERS, sizes=SIZES, room=room)
    points = itertools.product((0, 1), repeat=space.num_numbers)
    # A point with own weights whose kept parts do not fit is the candidate over shared weights.
    valid = [point for point in points if sum(point) > 0 and sum(point[: 2 * LAYERS]) < 2 * LAYERS]
    assert len(valid) == space.num_points
    assert all(space.at(point).is_draft for point in valid)
    assert space.has_own_weights == (room >= 10)


def test_the_whole_model_is_a_draft_only_with_own_weights() -> None:
    assert not sharing((0,) * 6).is_draft
    assert not sharing((1,) * 6).is_draft
    assert candidate_of(SkipSet(), LAYERS, LowBitSet(head=True)).is_draft
    assert sharing((1, 0, 0, 0, 0, 0)).is_draft


def test_without_memory_there_is_one_candidate_for_each_set() -> None:
    space = DraftSpace(num_layers=LAYERS)
    assert space.of_each_kind([(1, 0, 0, 0, 0, 0)] * 2) == [sharing((1, 0, 0, 0, 0, 0))]
    assert space.num_points == 2**6 - 2
