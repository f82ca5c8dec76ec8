"""Activations and products of ONNX Runtime become standard operators with the same results."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sstool.targets.passes.standard_activations import StandardActivationsPass
from tests.toolchain.passes.small_graphs import constant, drawn, floats, kinds, model_of, named, run

CASES: dict[str, tuple[str, dict[str, Any], dict[str, int], dict[str, int]]] = {
    "silu": ("QuickGelu", {"alpha": 1.0}, {}, {"Sigmoid": 1, "Mul": 1}),
    "quick gelu": ("QuickGelu", {"alpha": 1.702}, {}, {"Sigmoid": 1, "Mul": 2}),
    "gelu": ("Gelu", {}, {}, {"Gelu": 1}),
    "fast gelu": ("FastGelu", {}, {}, {"Gelu": 1}),
    "fast gelu with a bias": ("FastGelu", {}, {"bias": 6}, {"Add": 1, "Gelu": 1}),
    "gelu with a bias": ("BiasGelu", {}, {"bias": 6}, {"Add": 1, "Gelu": 1}),
    "a product": ("FusedMatMul", {}, {"weight": 6}, {"MatMul": 1}),
    "a scaled product": ("FusedMatMul", {"alpha": 0.5}, {"weight": 6}, {"MatMul": 1, "Mul": 1}),
    "a product with a turned weight": ("FusedMatMul", {"transB": 1}, {"weight": 6}, {"Transpose": 1, "MatMul": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_result_stays_the_same(name: str) -> None:
    kind, attributes, extra, expected_kinds = CASES[name]
    x, cache = floats("x", 1, 3, 6), floats("past.0.key", 1, 1, 4, 6)
    constants = [constant(key, drawn(*([size] if key == "bias" else [size, size]), seed=2)) for key, size in extra.items()]
    node = named(ir.node(kind, [x, *constants], attributes=attributes, domain="com.microsoft", name="node"), "y")
    kept = named(ir.node("Identity", [cache]), "present.0.key")
    given = model_of([x, cache], [*node.outputs, *kept.outputs], [node, kept], *constants)
    feeds = {"x": drawn(1, 3, 6), "past.0.key": drawn(1, 1, 4, 6)}
    before = run(given, **feeds)["y"]
    done = StandardActivationsPass()(given)
    assert done.modified
    assert kinds(done.model) == {**expected_kinds, "Identity": 1}
    assert not any(n.domain == "com.microsoft" for n in done.model.graph)
    np.testing.assert_allclose(run(done.model, **feeds)["y"], before, rtol=1e-4, atol=1e-5)


def test_standard_operators_are_not_changed() -> None:
    x, cache = floats("x", 1, 3, 6), floats("past.0.key", 1, 1, 4, 6)
    node = named(ir.node("Gelu", [x]), "y")
    kept = named(ir.node("Identity", [cache]), "present.0.key")
    assert not StandardActivationsPass()(model_of([x, cache], [*node.outputs, *kept.outputs], [node, kept])).modified
