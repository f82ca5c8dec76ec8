"""A graph for one sequence has no query lengths, and computes the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sstool.graph.passes.sequence_lengths import SequenceLengthsPass
from sstool.targets.passes.single_sequence import SingleSequencePass
from tests.toolchain.passes.small_graphs import HEAD_DIM, PACKED, attention_model, drawn, only_node, run


def test_query_lengths_are_removed() -> None:
    given = SequenceLengthsPass()(attention_model(rope=False)).model
    for value in [v for v in given.graph.inputs if v.name in ("seqlens_k", "total_sequence_length") and not v.uses()]:
        given.graph.inputs.remove(value)
    lengths = {"query_seqlens": [5], "seqlens_k": [4], "total_sequence_length": 5}
    feeds = {name: np.asarray(value, dtype=np.int32) for name, value in lengths.items()}
    feeds |= {f"past_key_values.0.{kind}": np.zeros((1, 1, 0, HEAD_DIM), dtype=np.float32) for kind in ("key", "value")}  # type: ignore[misc]
    packed = drawn(1, 5, PACKED)
    before = run(given, packed=packed, **feeds)
    done = SingleSequencePass()(given)
    assert "query_seqlens" not in [v.name for v in done.model.graph.inputs]
    assert len(only_node(done.model, "GroupQueryAttention").inputs) == 7
    del feeds["query_seqlens"]
    for name, expected in before.items():
        np.testing.assert_allclose(run(done.model, packed=packed, **feeds)[name], expected, rtol=1e-5, atol=1e-6)


def test_a_graph_without_them_stays() -> None:
    given = attention_model()
    names = [v.name for v in given.graph.inputs]
    assert [v.name for v in SingleSequencePass()(given).model.graph.inputs] == names
    assert isinstance(given, ir.Model)
