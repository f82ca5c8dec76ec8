"""The parity gate of an export refuses wrong graphs.

Every fault in a graph changes the logits by more than a hundred times what the gate allows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import pytest

from ssruntime.artifact import Rope, SkipSet
from ssruntime.errors import UnsupportedModelError
from sstool.artifact_files import assemble
from sstool.checkpoint.describe import describe_checkpoint
from sstool.checkpoint.rope import ropes
from sstool.graph.lower import LoweringPlan, lower_draft, lower_verify
from sstool.graph.sublayers import Sublayer, sublayer_of
from sstool.pipelines.export import ExportRequest, export_artifact
from sstool.validation.reference import MAX_RELATIVE_ERROR
from tests.families.checkpoints import FAMILIES, WINDOW
from tests.families.proof import relative_error, run, verify_graph

MakeModel = Callable[[str, int], Path]

CLEAR_ERROR: Final = 100 * MAX_RELATIVE_ERROR


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sublayer_window_and_rope_clearly_affects_the_logits(family: str, family_model: MakeModel) -> None:
    checkpoint = describe_checkpoint(family_model(family, 0))
    whole = verify_graph(checkpoint)
    logits = run(checkpoint, whole)
    moved = {f"no {kind} {n}": run(checkpoint, lower_draft(whole, skip)) for kind, n, skip in single_sublayers(checkpoint.num_layers)}
    for n, layer in enumerate(checkpoint.attention):
        if layer.window is not None:
            moved[f"no window {n}"] = run(checkpoint, with_attribute(whole, n, "local_window_size", -1))
        if layer.rope is not None:
            moved[f"no RoPE {n}"] = run(checkpoint, with_attribute(whole, n, "do_rotary", 0))
    errors = {name: relative_error(other, logits) for name, other in moved.items()}
    assert min(errors.values()) > CLEAR_ERROR, min(errors.items(), key=lambda item: item[1])


def single_sublayers(num_layers: int) -> list[tuple[str, int, SkipSet]]:
    attention = [("attention", n, SkipSet(attention=(n,))) for n in range(num_layers)]
    return [*attention, *(("mlp", n, SkipSet(mlp=(n,))) for n in range(num_layers))]


def with_attribute(model: ir.Model, layer: int, name: str, value: int) -> ir.Model:
    changed = model.clone()
    node = next(n for n in changed.graph if n.op_type == "GroupQueryAttention" and sublayer_of(n) == Sublayer(layer, "attention"))
    node.attributes.add(ir.AttrInt64(name, value))
    return changed


def every_window(window: int | None) -> Callable[[LoweringPlan], LoweringPlan]:
    return lambda plan: dataclasses.replace(
        plan, attention=tuple(layer if layer.window is None else dataclasses.replace(layer, window=window) for layer in plan.attention)
    )


def one_window_too_wide(plan: LoweringPlan) -> LoweringPlan:
    index = next(i for i, layer in enumerate(plan.attention) if layer.window is not None)
    wider = dataclasses.replace(plan.attention[index], window=WINDOW + 1)
    return dataclasses.replace(plan, attention=(*plan.attention[:index], wider, *plan.attention[index + 1 :]))


def rope_in_every_layer(plan: LoweringPlan) -> LoweringPlan:
    return dataclasses.replace(plan, attention=tuple(dataclasses.replace(a, rope="every layer") for a in plan.attention))


def no_embedding_scale(plan: LoweringPlan) -> LoweringPlan:
    return dataclasses.replace(plan, hidden_size=1)


PLANS: Final[dict[str, tuple[str, int, Callable[[LoweringPlan], LoweringPlan]]]] = {
    "no window: mistral": ("mistral", 0, every_window(None)),
    "no window: gemma2": ("gemma2", 0, every_window(None)),
    "no window: qwen2": ("qwen2", 0, every_window(None)),
    "no window: mixtral": ("mixtral", 0, every_window(None)),
    "a window one too narrow: olmo3": ("olmo3", 0, every_window(WINDOW - 1)),
    "one window one too wide: exaone4": ("exaone4", 0, one_window_too_wide),
    "RoPE in layers without it: exaone4": ("exaone4", 0, rope_in_every_layer),
    "a rounded embedding scale: gemma2": ("gemma2", 1, no_embedding_scale),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_wrong_plan_is_refused(case: str, family_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, shape, change = PLANS[case]
    monkeypatch.setattr(assemble, "lower_verify", lambda model, plan: lower_verify(model, change(plan)))
    assert_refused(family_model(family, shape), tmp_path)


def test_another_rope_base_is_refused(family_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(config: Any) -> dict[str, Rope]:
        return {
            name: dataclasses.replace(rope, frequencies=tuple(f**1.02 for f in rope.frequencies)) for name, rope in ropes(config).items()
        }

    monkeypatch.setattr(assemble, "ropes", wrong)
    assert_refused(family_model("granite", 0), tmp_path)


def swap_layers(graph: ir.Graph) -> None:
    names = [next(n for n in graph.initializers if f"layers.{layer}.self_attn.o_proj" in n) for layer in (1, 2)]
    first, second = (graph.initializers[n] for n in names)
    first.const_value, second.const_value = second.const_value, first.const_value


def drop_division(graph: ir.Graph) -> None:
    """Makes the divisor after the output head 1: that of a logit scale, or of a soft cap."""
    node = next(n for n in graph if n.op_type == "Div")
    one = ir.Value(name="one", const_value=ir.tensor(np.float32(1), name="one"), type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
    graph.register_initializer(one)
    node.replace_input_with(1, one)


def drop_attention_cap(graph: ir.Graph) -> None:
    for node in graph:
        if node.op_type == "GroupQueryAttention":
            del node.attributes["softcap"]


def drop_residual_scale(graph: ir.Graph) -> None:
    node = next(n for n in graph if n.op_type == "Mul" and n.inputs[1] is not None and n.inputs[1].const_value is not None)
    value = node.inputs[0]
    assert value is not None
    ir.convenience.replace_all_uses_with(node.outputs[0], value)


GRAPHS: Final[dict[str, tuple[str, Callable[[ir.Graph], None]]]] = {
    "two layers' weights swapped: llama": ("llama", swap_layers),
    "two layers' weights swapped: qwen3_moe": ("qwen3_moe", swap_layers),
    "no logit scale: granite": ("granite", drop_division),
    "no division in the last soft cap: gemma2": ("gemma2", drop_division),
    "no soft cap on attention: gemma2": ("gemma2", drop_attention_cap),
    "no residual scale: granite": ("granite", drop_residual_scale),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_broken_graph_is_refused(case: str, family_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, change = GRAPHS[case]

    def broken(model: ir.Model, plan: LoweringPlan) -> ir.Model:
        lowered = lower_verify(model, plan)
        change(lowered.graph)
        return lowered

    monkeypatch.setattr(assemble, "lower_verify", broken)
    assert_refused(family_model(family, 0), tmp_path)


def assert_refused(model: Path, folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="not the checkpoint's model: logits differ by"):
        export_artifact(ExportRequest(model=model, out=folder / "out"))
    assert not (folder / "out").exists()
