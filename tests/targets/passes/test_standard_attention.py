"""Attention of standard operators computes what ONNX Runtime's kernel does, over a cache of fixed capacity.

Families, windows and token trees: `tests/families/test_targets.py`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from ssruntime import graph_io
from sstool.graph.passes.rename_kv_cache import RenameKvCachePass
from sstool.graph.passes.sequence_lengths import SequenceLengthsPass
from sstool.graph.passes.tree_attention import CausalOnlyPass, TreeAttentionPass
from sstool.targets.passes.standard_attention import StandardAttentionPass
from sstool.targets.passes.static_shapes import StaticShapesPass
from tests.toolchain.passes.small_graphs import HEAD_DIM, PACKED, QUERY_HEADS, Array, attention_model, constant, drawn, kinds, run

CAPACITY = 12
PAST = 5


def model(*, trees: bool, softcap: float = 0.0, window: int = -1) -> ir.Model:
    """Returns a model of the graph contract with one attention and an LM head of its own kind."""
    given = attention_model(rope=False)
    for node in given.graph:
        node.attributes.add(ir.AttrFloat32("softcap", softcap))
        node.attributes.add(ir.AttrInt64("local_window_size", window))
    lengths = [v for v in given.graph.inputs if v.name in ("seqlens_k", "total_sequence_length")]
    done = SequenceLengthsPass()(given).model
    for value in lengths:
        done.graph.inputs.remove(value)
    done = TreeAttentionPass()(RenameKvCachePass()(done).model).model
    ids = ir.Value(name=graph_io.INPUT_IDS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "sequence_len"]))
    done.graph.inputs.append(ids)
    return StaticShapesPass(CAPACITY)(done if trees else CausalOnlyPass()(done).model).model


def feeds(packed: NDArray[np.float32], start: int, past: dict[str, Array], mask: NDArray[np.float32] | None) -> dict[str, Array]:
    length = packed.shape[0]
    return {
        "packed": packed[None],
        "input_ids": np.zeros((1, length), dtype=np.int64),
        "position_ids": np.arange(start, start + length, dtype=np.int64)[None],
        "query_seqlens": np.array([length], dtype=np.int32),
        "seqlens_k": np.array([start + length - 1], dtype=np.int32),
        "total_sequence_length": np.array(start + length, dtype=np.int32),
        "past_length": np.array([start]),
        "write_indices": np.array([start]),
        "tree_mask": np.zeros((1, 1, length, length), dtype=np.float32) if mask is None else mask,
        **past,
    }


def passes(graph: ir.Model, packed: NDArray[np.float32], mask: NDArray[np.float32] | None) -> tuple[Array, Array]:
    """Returns the attention of two passes: over the first `PAST` tokens, and over the rest."""
    names = {value.name for value in graph.graph.inputs}
    past = {f"past.0.{kind}": np.zeros((1, 1, CAPACITY, HEAD_DIM), dtype=np.float32) for kind in ("key", "value")}
    results = []
    for start, stop, tree in ((0, PAST, None), (PAST, len(packed), mask)):
        given = {k: v for k, v in feeds(packed[start:stop], start, past, tree).items() if k in names}
        found = run(graph, **given)
        past = {name.replace("present", "past"): content for name, content in found.items() if name.startswith("present")}
        results.append(found["mixed.0"])
    return results[0], results[1]


@pytest.mark.parametrize("window", [-1, 3])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("trees", [False, True])
def test_the_result_is_the_kernel_s(trees: bool, softcap: float, window: int) -> None:
    packed = drawn(CAPACITY - 1, PACKED)
    mask = np.zeros((1, 1, CAPACITY - 1 - PAST, CAPACITY - 1 - PAST), dtype=np.float32)
    if trees:
        mask[0, 0, 4, 1:4] = graph_io.HIDDEN  # a side branch beside the tokens before it
    given = model(trees=trees, softcap=softcap, window=window)
    before = passes(given.clone(), packed, mask)
    done = StandardAttentionPass(CAPACITY)(given)
    assert done.modified
    after = passes(done.model, packed, mask)
    for expected, found in zip(before, after, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_lengths_become_one_index() -> None:
    done = StandardAttentionPass(CAPACITY)(model(trees=False)).model
    names = {value.name for value in done.graph.inputs}
    assert not names & {"query_seqlens", "seqlens_k", "total_sequence_length", "past_length", "tree_mask"}
    assert "write_indices" in names
    assert {n.domain for n in done.graph} == {""}
    assert kinds(done)["TensorScatter"] == 2
    assert {v.name for v in done.graph.outputs} == {"mixed.0", "present.0.key", "present.0.value"}


def test_one_mask_serves_all_layers_of_a_window() -> None:
    assert kinds(StandardAttentionPass(CAPACITY)(model(trees=True)).model)["GatherElements"] == 1
    assert constant("unused", drawn(1)).name == "unused"
    assert QUERY_HEADS > 1
