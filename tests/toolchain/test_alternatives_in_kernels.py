"""In real kernels an alternative attends to the trunk before it, and its KV can be copied into the trunk.

An alternative is a side branch of the token tree, one token long.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx_ir as ir
import pytest

from ssruntime.backends.ort.slot import OrtSlot
from ssruntime.engine import Engine, load
from ssruntime.errors import UnsupportedModelError
from ssruntime.proposal import Alternative
from sstool.artifact_files import assemble
from sstool.checkpoint.describe import describe_checkpoint
from sstool.graph.lower import LoweringPlan, lower_verify
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.skip_set import SkipSpec
from sstool.validation.parity import plan_parity
from tests.toolchain.tiny_llama import VOCAB, make_llama

SKIP = SkipSpec(attention=(1,), mlp=(1,))
IDS = [int(i) for i in np.random.default_rng(8).integers(0, VOCAB, 40)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("alternatives")
    export_artifact(ExportRequest(model=make_llama(folder / "model"), out=folder / "out", skip=SKIP))
    return load(folder / "out", threads=1)


@pytest.mark.parametrize("depths", [(0,), (2,), (0, 0, 0), (0, 1, 2), (1, 1, 3, 3, 3)])
def test_an_alternative_has_the_logits_of_its_own_sequence(engine: Engine, depths: tuple[int, ...]) -> None:
    slot = engine.backend.acquire(0)
    try:
        slot.prefill(IDS[:20])
        trunk = IDS[20:25]
        alternatives = [Alternative(depth, IDS[30 + n]) for n, depth in enumerate(depths)]
        output = slot.verify(trunk, 20, alternatives).logits.copy()
        scale = float(np.abs(output).max())
        np.testing.assert_allclose(output[:5], slot.verify(trunk, 20).logits, atol=1e-6 * scale)
        for row, (depth, token) in zip(output[5:], alternatives, strict=True):
            alone = slot.verify([*trunk[: depth + 1], token], 20).logits[-1]
            np.testing.assert_allclose(row, alone, atol=1e-5 * scale)
    finally:
        engine.backend.release(slot)


def test_logits_after_an_accepted_alternative_are_those_after_the_trunk(engine: Engine) -> None:
    slot = engine.backend.acquire(0)
    try:
        expected = slot.forward(IDS[:24], 0, range(24)).logits[21:].copy()
        slot.prefill(IDS[:20])
        wrong = [(t + 1) % VOCAB for t in IDS[21:24]]
        slot.verify([IDS[20], *wrong], 20, [Alternative(1, wrong[0]), Alternative(0, IDS[21])])
        # The accepted branch is run again, as the first token of the next trunk.
        found = slot.verify(IDS[21:24], 21).logits
        np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.abs(expected).max()))
    finally:
        engine.backend.release(slot)


def test_the_tree_mask_is_cleared_after_a_pass(engine: Engine) -> None:
    slot = engine.backend.acquire(0)
    try:
        slot.prefill(IDS[:20])
        before = slot.verify(IDS[20:24], 20).logits.copy()
        slot.verify(IDS[20:22], 20, [Alternative(0, 3), Alternative(0, 4)])  # of the same query length
        np.testing.assert_array_equal(slot.verify(IDS[20:24], 20).logits, before)
    finally:
        engine.backend.release(slot)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_the_tree_mask_is_cleared_after_a_pass_that_fails(
    engine: Engine, interruption: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = engine.backend.acquire(0)
    assert isinstance(slot, OrtSlot)
    try:
        slot.prefill(IDS[:20])
        before = slot.verify(IDS[20:24], 20).logits.copy()

        with monkeypatch.context() as patch:
            patch.setattr(slot._verify, "_timed", Mock(side_effect=interruption))
            with pytest.raises(interruption):
                slot.verify(IDS[20:22], 20, [Alternative(0, 3), Alternative(0, 4)])  # of the same query length
        np.testing.assert_array_equal(slot.verify(IDS[20:24], 20).logits, before)
    finally:
        engine.backend.release(slot)


def test_alternatives_in_a_first_pass_are_as_exact_as_later_ones(engine: Engine) -> None:
    slot = engine.backend.acquire(0)
    try:
        expected = slot.verify([IDS[0], 3], 0).logits[1].copy()
        found = slot.verify(IDS[:3], 0, [Alternative(0, 3)]).logits[3]
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    finally:
        engine.backend.release(slot)


def ignore_mask(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            node.replace_input_with(10, None)


def ignore_positions(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            node.replace_input_with(9, None)


@pytest.mark.parametrize("defect", [ignore_mask, ignore_positions])
def test_the_gate_refuses_a_graph_that_ignores_the_mask_or_the_positions(
    defect: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(defect)

    def broken(model: ir.Model, plan: LoweringPlan) -> ir.Model:
        lowered = lower_verify(model, plan)
        defect(lowered)
        return lowered

    monkeypatch.setattr(assemble, "lower_verify", broken)
    with pytest.raises(UnsupportedModelError, match="alternatives"):
        export_artifact(ExportRequest(model=make_llama(tmp_path / "model"), out=tmp_path / "out", skip=SKIP))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("max_context", "has_room"), [(256, True), (64, True), (8, False)])
def test_the_parity_plan_has_alternatives_if_the_context_has_room(tmp_path: Path, max_context: int, has_room: bool) -> None:
    plan = plan_parity(describe_checkpoint(make_llama(tmp_path / "model")), max_context)
    assert (plan.beside is not None) == has_room
    if plan.beside is not None:
        assert set(range(plan.beside, plan.beside + 4)) <= set(plan.positions)
        assert plan.beside + 6 <= plan.prefill
