"""What a quantization chooses: smoothing where channels stick out, fp32 for sublayers that lose most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from ssruntime import Engine, load
from sstool.graph.products import product_groups
from sstool.graph.sublayers import Sublayer
from sstool.prompts import BUILT_IN_CALIBRATION, read_prompts
from sstool.quantize.formats.base import WeightFormat
from sstool.quantize.formats.int4_blocks import Int4Blocks
from sstool.quantize.formats.int8_columns import FULL_LEVELS, Int8Columns
from sstool.quantize.plan import Part, make_plan
from sstool.quantize.precisions import quantization_of
from sstool.quantize.quality import compare_quality, logits_of
from sstool.quantize.sensitivity import choose_kept, leading, variant
from sstool.quantize.statistics import measure_inputs
from sstool.quantize.texts import read_texts
from sstool.selftest.exactness import write_artifact
from sstool.targets.registry import GRAPH_TARGETS
from tests.processor import needs_exact_products
from tests.quantize.conftest import SKIP

INT8 = Int8Columns(FULL_LEVELS)


@pytest.fixture(scope="module")
def outliers(outlier_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine of the model with outlier channels, in fp32."""
    out = tmp_path_factory.mktemp("outlier-artifact") / "fp32"
    artifact = write_artifact(GRAPH_TARGETS["ort-cpu"], outlier_model, out, max_context=512, skip=SKIP)
    with load(artifact.folder, max_context=300, draft=False) as engine:
        yield engine


@pytest.fixture(scope="module")
def demo_base(demo_artifact: Path) -> ir.Model:
    return ir.load(demo_artifact / "verify.onnx")


@needs_exact_products
def test_smoothing_matters_where_channels_stick_out(outliers: Engine) -> None:
    base = ir.load(outliers.artifact.base_graph())
    texts = read_texts(outliers.artifact, read_prompts(BUILT_IN_CALIBRATION)[:24])
    statistics = measure_inputs(outliers.backend, base, texts.calibration)
    parts = list(dict.fromkeys(group.sublayer for group in product_groups(base.graph)))
    slot = outliers.backend.acquire(None)
    found = {}
    for smooth in (False, True):
        plan = make_plan(base, statistics, INT8, smooth=smooth)
        quantized = variant(outliers.backend, base, plan, parts)
        found[smooth] = compare_quality(logits_of(slot), quantized, texts.held_out)
    outliers.backend.release(slot)
    assert found[False].mean_kl > 4 * found[True].mean_kl
    assert found[True].mean_kl < 0.002
    assert found[True].top1_agreement > found[False].top1_agreement


@pytest.mark.parametrize("chosen", [INT8, Int4Blocks(32)])
def test_each_format_gains_from_its_factors_and_from_clipping(outliers: Engine, chosen: WeightFormat) -> None:
    base = ir.load(outliers.artifact.base_graph())
    texts = read_texts(outliers.artifact, read_prompts(BUILT_IN_CALIBRATION)[:24])
    statistics = measure_inputs(outliers.backend, base, texts.calibration)
    parts = parts_of(base)
    slot = outliers.backend.acquire(None)
    found = {}
    for both in (False, True):
        quantized = variant(outliers.backend, base, make_plan(base, statistics, chosen, smooth=both, clip=both), parts)
        found[both] = compare_quality(logits_of(slot), quantized, texts.held_out).mean_kl
    outliers.backend.release(slot)
    assert found[True] < found[False]


def test_statistics_are_those_of_the_activations(outliers: Engine) -> None:
    base = ir.load(outliers.artifact.base_graph())
    ids = [[5, 6, 7, 8, 9], [10, 11, 12]]
    found = measure_inputs(outliers.backend, base, ids)
    assert found.keys() == {group.name for group in product_groups(base.graph)}
    for of_input in found.values():
        assert len(of_input.samples) == 8
        np.testing.assert_allclose(np.abs(of_input.samples).max(axis=0), of_input.largest, rtol=1e-6)
        np.testing.assert_allclose(np.square(of_input.samples).mean(axis=0), of_input.mean_square, rtol=1e-4)


def parts_of(base: ir.Model) -> list[Part]:
    return list(dict.fromkeys(group.sublayer for group in product_groups(base.graph)))


def test_nothing_is_kept_where_the_quality_is_good_enough(demo_base: ir.Model) -> None:
    assert choose_kept(demo_base, 0.001, dict.fromkeys(parts_of(demo_base), 1e-4), aim=0.005, growth=3.0, budget=0.1) == frozenset()


def test_the_sublayers_that_cost_most_are_kept(demo_base: ir.Model) -> None:
    costs: dict[Part, float] = dict.fromkeys(parts_of(demo_base), 1e-5)
    costs[Sublayer(4, "attention")] = 0.02
    assert choose_kept(demo_base, 0.022, costs, aim=0.005, growth=3.0, budget=0.1) == {Sublayer(4, "attention")}


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_what_is_kept_stays_within_the_budget(demo_base: ir.Model, dtype: str) -> None:
    formats = quantization_of(dtype)
    kept = choose_kept(demo_base, 9.0, dict.fromkeys(parts_of(demo_base), 1.0), aim=0.0, growth=formats.growth, budget=formats.budget)
    sizes: dict[Part, int] = {}
    for group in product_groups(demo_base.graph):
        sizes[group.sublayer] = sizes.get(group.sublayer, 0) + sum(rows * columns for rows, columns in (p.shape for p in group.products))
    assert kept
    assert formats.growth * sum(sizes[part] for part in kept) <= formats.budget * sum(sizes.values())


def test_the_formats_are_ordered_by_their_bits() -> None:
    int8, int4 = quantization_of("int8"), quantization_of("int4", block=64)
    assert (int8.usual.bits, int8.growth) == (8.0, 3.0)
    assert int4.usual.bits == 4 + 36 / 64
    assert int4.finer == int8.usual
    assert 0 < int4.growth < 1


def test_kept_sublayers_stay_in_fp32(outliers: Engine) -> None:
    base = ir.load(outliers.artifact.base_graph())
    statistics = measure_inputs(outliers.backend, base, [[5, 6, 7, 8]])
    kept = Sublayer(2, "mlp")
    done = make_plan(base, statistics, INT8).keeping([kept, None]).apply(ir.load(outliers.artifact.base_graph()))
    of_kind = {"MatMul": 0, "FusedMatMul": 0, "MatMulIntegerToFloat": 0}
    for node in done.graph:
        if node.op_type in of_kind:
            of_kind[node.op_type] += 1
    assert of_kind["MatMul"] + of_kind["FusedMatMul"] == 3
    assert of_kind["MatMulIntegerToFloat"] == 65 - 3


@pytest.mark.parametrize(
    ("lengths", "tokens", "expected"), [([5, 5, 5], 12, [5, 5, 2]), ([5, 5, 5], 11, [5, 5]), ([9], 4, [4]), ([3, 3], 99, [3, 3])]
)
def test_the_first_texts_are_taken_up_to_a_length(lengths: Sequence[int], tokens: int, expected: list[int]) -> None:
    assert [len(ids) for ids in leading([[1] * n for n in lengths], tokens)] == expected


def test_a_perfect_copy_has_no_divergence(outliers: Engine) -> None:
    slot = outliers.backend.acquire(None)
    quality = compare_quality(logits_of(slot), logits_of(slot), [[5, 6, 7, 8], [9, 10, 11]])
    outliers.backend.release(slot)
    assert (quality.mean_kl, quality.top1_agreement, quality.positions) == (0.0, 1.0, 7)
    assert quality.perplexity == quality.reference_perplexity


def test_an_infinite_logit_is_an_infinite_divergence() -> None:
    def broken(ids: Sequence[int]) -> np.ndarray:
        return np.full((len(ids), 5), np.nan, dtype=np.float32)

    def flat(ids: Sequence[int]) -> np.ndarray:
        return np.zeros((len(ids), 5), dtype=np.float32)

    assert compare_quality(flat, broken, [[1, 2, 3]]).mean_kl == np.inf
