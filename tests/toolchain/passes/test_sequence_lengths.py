"""Lengths are two small inputs in place of the attention mask, and attention computes the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ssruntime.errors import UnsupportedModelError
from sstool.graph.passes.sequence_lengths import SequenceLengthsPass
from tests.toolchain.passes.small_graphs import (
    HEAD_DIM,
    PACKED,
    attention_node,
    constant,
    drawn,
    floats,
    integers,
    kinds,
    model_of,
    named,
    run,
    typed,
)


def model(*, mask_has_use: bool = False) -> ir.Model:
    """Returns a model of two attentions whose lengths come from an attention mask, as mobius builds it."""
    packed, mask = floats("packed", 1, "sequence", PACKED), integers("attention_mask", 1, "total")
    one, last, first = constant("one", np.array(1)), constant("last", np.array([-1])), constant("first", np.array(1))
    total = ir.node("ReduceSum", [mask, last], attributes={"keepdims": 0})
    less = ir.node("Sub", [total.outputs[0], one])
    seqlens = ir.node("Cast", less.outputs, attributes={"to": ir.DataType.INT32.value})
    shape = ir.node("Shape", [mask])
    length = ir.node("Gather", [shape.outputs[0], first])
    whole = ir.node("Cast", length.outputs, attributes={"to": ir.DataType.INT32.value})
    attentions = [attention_node(packed, [seqlens.outputs[0], whole.outputs[0]], layer=layer) for layer in range(2)]
    past = [value for node in attentions for value in node.inputs[3:5] if value is not None]
    nodes = [total, less, seqlens, shape, length, whole, *attentions]
    outputs = [value for node in attentions for value in node.outputs]
    if mask_has_use:
        nodes.append(named(ir.node("Neg", [mask]), "negative"))
        outputs.append(typed(nodes[-1].outputs[0], ir.DataType.INT64, [1, "total"]))
    return model_of([packed, mask, *past], outputs, nodes, one, last, first)


def test_attention_computes_the_same() -> None:
    given = model()
    feeds = {f"past_key_values.{n}.{kind}": drawn(1, 1, 3, HEAD_DIM, seed=n) for n in range(2) for kind in ("key", "value")}
    feeds["packed"] = drawn(1, 2, PACKED)
    before = run(given, attention_mask=np.ones((1, 5), dtype=np.int64), **feeds)
    done = SequenceLengthsPass()(given)
    assert done.modified
    lengths = {"query_seqlens": np.array([2]), "seqlens_k": np.array([4]), "total_sequence_length": np.array(5)}
    after = run(done.model, **{name: value.astype(np.int32) for name, value in lengths.items()}, **feeds)
    for name, expected in before.items():
        np.testing.assert_array_equal(after[name], expected)


def test_the_mask_and_its_arithmetic_are_removed() -> None:
    done = SequenceLengthsPass()(model()).model
    assert kinds(done) == {"GroupQueryAttention": 2}
    assert not done.graph.initializers
    assert "attention_mask" not in [v.name for v in done.graph.inputs]
    query, seqlens, total = done.graph.inputs[-3:]
    assert (query.name, query.dtype, query.shape) == ("query_seqlens", ir.DataType.INT32, ir.Shape(["batch"]))
    assert (seqlens.name, seqlens.dtype, seqlens.shape) == ("seqlens_k", ir.DataType.INT32, ir.Shape(["batch"]))
    assert (total.name, total.dtype, total.shape) == ("total_sequence_length", ir.DataType.INT32, ir.Shape([]))


def test_another_use_of_the_mask_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="attention mask outside the attention kernels"):
        SequenceLengthsPass().call(model(mask_has_use=True))


def test_a_graph_with_other_attention_or_without_any_is_refused() -> None:
    mixed = model()
    packed = mixed.graph.inputs[0]
    mixed.graph.append(ir.node("Attention", [packed, packed, packed]))
    x = floats("x", 1)
    negative = named(ir.node("Neg", [x]), "y")
    for given in (mixed, model_of([x], negative.outputs, [negative])):
        with pytest.raises(UnsupportedModelError, match="not lowered to GroupQueryAttention"):
            SequenceLengthsPass().call(given)
