"""A measured latency table is complete and positive, and the speed model reproduces its measurements."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ssruntime.graph_io import MAX_QUERY_LENGTH
from sstool.graph.sublayers import Sublayer
from sstool.search.drafts.builder import DraftBuilder
from sstool.search.drafts.space import DraftSpace, sharing
from sstool.search.log.records import DraftCosts, LatencyRow
from sstool.search.speed_model.costs import CostModel, DraftCost
from sstool.search.speed_model.fit import CostSample, StepSample, fit
from sstool.search.speed_model.measure import measure_latency, sublayer_bytes
from sstool.search.speed_model.probes import ladder_sets, probe_sets, probes_within
from sstool.search.texts.make import CachedText
from tests.search.builders import table
from tests.search.conftest import SETTINGS


def row(context: int, scale: float) -> LatencyRow:
    verify = tuple(scale * (1 + 0.1 * n) for n in range(MAX_QUERY_LENGTH))
    return LatencyRow(
        context=context,
        verify=verify,
        draft=DraftCosts(
            base=0.1 * scale,
            attention=(0.2 * scale, 0.1),
            mlp=(0.3, 0.4),
            sizes=(0.5 * scale, 1.1 * scale),
            first=(1.0, 1.0),
            later=(0.6, 0.9),
        ),
    )


def test_costs_are_interpolated_between_contexts() -> None:
    costs = CostModel(table(row(100, 1.0), row(300, 2.0)))
    assert costs.verify(100)[0] == pytest.approx(1.0)
    assert costs.verify(200)[4] == pytest.approx(1.5 * 1.4)
    assert costs.verify(10) == costs.verify(100)
    assert costs.verify(9999) == costs.verify(300)
    everything_kept = costs.draft(sharing((0, 0, 0, 0)), 100).first
    assert everything_kept == pytest.approx(0.1 + 0.2 + 0.1 + 0.3 + 0.4)
    assert costs.draft(sharing((1, 0, 0, 1)), 100).first == pytest.approx(everything_kept - 0.2 - 0.4)
    assert costs.draft(sharing((0, 0, 0, 0)), 200).first == pytest.approx(0.15 + 0.3 + 0.1 + 0.7)


def test_a_step_takes_a_fraction_of_the_draft_s_size() -> None:
    costs = CostModel(table(row(100, 1.0), row(300, 2.0)))
    # The draft's size is 1.1 s in the first row and 1.4 s in the second. A later step takes 0.9 of the first
    # size, and 0.7 of the second, which lies a third of the way from 1.0 s to 2.2 s.
    assert costs.draft(sharing((0, 0, 0, 0)), 100).later == pytest.approx(0.9 * 1.1)
    assert costs.draft(sharing((0, 0, 0, 0)), 300).later == pytest.approx(0.7 * 1.4)
    assert costs.draft(sharing((0, 0, 0, 0)), 200).later == pytest.approx((0.9 * 1.1 + 0.7 * 1.4) / 2)
    # Sizes outside the measured range have the factor of the nearest measured size.
    assert costs.draft(sharing((1, 1, 1, 1)), 100).later == pytest.approx(0.6 * 0.1)


def test_each_draft_sequence_has_one_first_step() -> None:
    cost = DraftCost(first=3.0, later=2.0)
    assert [cost.seconds(n) for n in (0, 1, 2, 5)] == [0, 3, 5, 11]
    assert cost.seconds(5, drafts=2) == cost.seconds(1) + cost.seconds(4)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 16, 80])
def test_probe_sets_differ_and_separate_attention_from_mlp(num_layers: int) -> None:
    probes, ladder = probe_sets(num_layers), ladder_sets(num_layers)
    assert len(probes) >= 2
    assert set(ladder) <= set(probes)
    kept = [2 * num_layers - sum(bits) for bits in ladder]
    assert kept == sorted(kept)
    assert not kept or (kept[0], kept[-1]) == (2, 2 * num_layers - 1)
    assert all(0 < sum(bits) < 2 * num_layers for bits in probes)
    assert len(set(probes)) == len(probes)
    if num_layers > 2:
        kept = 1 - np.array(probes)
        design = np.stack([np.ones(len(probes)), kept[:, :num_layers].sum(axis=1), kept[:, num_layers:].sum(axis=1)], axis=1)
        assert np.linalg.matrix_rank(design) == 3


@pytest.mark.parametrize("num_layers", [1, 2, 3, 16])
@pytest.mark.parametrize("room", [0.0, 0.05, 0.4, 1.0])
def test_probes_over_own_weights_fit_or_are_the_few_smallest(num_layers: int, room: float) -> None:
    sizes = {Sublayer(n, kind): size for n in range(num_layers) for kind, size in (("attention", 4), ("mlp", 9))}
    total = sum(sizes.values()) + 5
    probes = probes_within(DraftSpace(num_layers=num_layers, sizes={None: 5, **sizes}, room=max(room * total, 5 * (room > 0))))
    kept = [sum((4 if n < num_layers else 9) * (1 - bit) for n, bit in enumerate(bits)) + 5 for bits in probes]
    assert bool(probes) == (room > 0)
    assert max(kept, default=0) <= max(room, 0.6) * total or num_layers < 16
    if num_layers > 2 and probes:
        left = 1 - np.array(probes)
        design = np.stack([np.ones(len(probes)), left[:, :num_layers].sum(axis=1), left[:, num_layers:].sum(axis=1)], axis=1)
        assert np.linalg.matrix_rank(design) == 3


def test_the_bytes_of_a_sublayer_are_those_of_its_matrices(builder: DraftBuilder) -> None:
    sizes = sublayer_bytes(builder.verify, builder.num_layers)
    attention, mlp = sizes[: builder.num_layers], sizes[builder.num_layers :]
    assert len(set(attention)) == len(set(mlp)) == 1
    assert mlp[0] >= 4 * 3 * 256 * 704
    assert attention[0] >= 4 * 2 * 256 * (256 + 128)
    assert sizes.sum() < builder.engine.artifact.manifest.model.weight_bytes


def test_a_measured_table_is_complete(builder: DraftBuilder, texts: list[CachedText]) -> None:
    measured = measure_latency(builder, DraftSpace(num_layers=builder.num_layers), [cached.text for cached in texts], SETTINGS)
    assert [r.context for r in measured.rows] == [96, 1024]
    for measured_row in measured.rows:
        assert len(measured_row.verify) == MAX_QUERY_LENGTH
        assert list(measured_row.verify) == sorted(measured_row.verify)
        assert measured_row.verify[0] > 0
        assert len(measured_row.draft.attention) == len(measured_row.draft.mlp) == builder.num_layers
        assert list(measured_row.draft.sizes) == sorted(measured_row.draft.sizes)
        assert (
            len(measured_row.draft.sizes)
            == len(measured_row.draft.first)
            == len(measured_row.draft.later)
            == len(ladder_sets(builder.num_layers))
        )
        assert all(0 < part < 2 for part in (*measured_row.draft.first, *measured_row.draft.later))
    costs = CostModel(measured)
    little, much = (costs.draft(sharing(bits), 96) for bits in (probe_sets(builder.num_layers)[0], (1,) + (0,) * 31))
    assert 0 < little.first < much.first
    assert 0 < little.later < much.later


def test_the_fit_recovers_the_costs_behind_the_times() -> None:
    """The times are made from known costs, except for one outlier; the fit recovers the costs."""
    num_layers = 16
    probes, weights = probe_sets(num_layers), np.array([2.0] * num_layers + [5.0] * num_layers)
    kept = 1 - np.array(probes)
    sizes = 0.3 + kept[:, :num_layers].sum(axis=1) * 0.1 + kept[:, num_layers:].sum(axis=1) * 0.25
    first, later = sizes, 0.7 * sizes
    later[3] *= 1.5
    plain = 6.0
    sample = CostSample(
        [plain] * 9 + [plain + 2.0],
        {2: [6.5] * 10, 16: [10.0] * 10},
        StepSample(probes, [[s] * 5 for s in first], [[s] * 5 for s in later]),
    )
    row, error = fit(96, sample, weights)
    stalls = sample.stalls()
    total = 60.0 + 65 + 100 + 5 * (first.sum() + later.sum())
    assert stalls == pytest.approx((total + 2.0) / total)
    assert error == pytest.approx(1 / 3, rel=0.01)  # of the outlier
    costs = CostModel(table(row))
    for bits, size in zip(probes, sizes, strict=True):
        cost = costs.draft(sharing(bits), 96)
        assert cost.first == pytest.approx(stalls * size, rel=1e-6)
        assert cost.later == pytest.approx(stalls * 0.7 * size, rel=1e-6)
    assert row.verify[0] == pytest.approx(stalls * plain)
    assert row.verify[1] == pytest.approx(stalls * 6.5)
    assert row.verify[8] == pytest.approx(stalls * (6.5 + 0.5 * 3.5))
    still = dataclasses.replace(sample, plain=[plain] * 9 + [3600.0])
    assert still.stalls() == pytest.approx((total + 9 * plain) / total)
