"""Dimensions that no pass changes are numbers; the others keep their names."""

from __future__ import annotations

import onnx_ir as ir

from sstool.targets.passes.static_shapes import StaticShapesPass
from tests.toolchain.passes.small_graphs import floats, integers, model_of, named, typed


def test_batch_capacity_and_rope_tables_are_fixed() -> None:
    ids, cache = integers("input_ids", "batch", "sequence_len"), floats("past.0.key", "batch", 2, "max_context", 8)
    table, unknown = floats("rope.all.cos", "positions", 4), ir.Value(name="unknown", type=ir.TensorType(ir.DataType.FLOAT))
    kept = named(ir.node("Identity", [cache]), "present.0.key")
    typed(kept.outputs[0], ir.DataType.FLOAT, ["batch", 2, "max_context", 8])
    used = [named(ir.node("Identity", [value]), f"{value.name}.used") for value in (ids, table, unknown)]
    done = StaticShapesPass(32)(model_of([ids, cache, table, unknown], [n.outputs[0] for n in (kept, *used)], [kept, *used])).model
    shapes = {value.name: value.shape for value in (*done.graph.inputs, *done.graph.outputs)}
    assert shapes["input_ids"] == ir.Shape([1, "sequence_len"])
    assert shapes["past.0.key"] == shapes["present.0.key"] == ir.Shape([1, 2, 32, 8])
    assert shapes["rope.all.cos"] == ir.Shape([32, 4])
    assert shapes["unknown"] is None
