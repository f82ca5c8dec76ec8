"""Attention uses the positions and the tree mask that it is given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from ssruntime.errors import UnsupportedModelError
from ssruntime.graph_io import HIDDEN
from sstool.graph.passes.tree_attention import CausalOnlyPass, TreeAttentionPass
from tests.toolchain.passes.small_graphs import (
    PACKED,
    Array,
    attention_model,
    attention_reference,
    causal,
    drawn,
    first_tokens,
    integers,
    kinds,
    named,
    only_node,
    rope_table,
    run,
    typed,
)

PAST = 3
POSITIONS = [0, 1, 2, 3, 4, 4, 5]
"""Three cached tokens, two tokens of a trunk, a side branch beside the second of them, and its next token."""
LENGTH = len(POSITIONS)
BIAS = dict.fromkeys(("Cast", "Unsqueeze", "Shape", "Concat", "ConstantOfShape", "TensorScatter"), 1)
"""Nodes that write the mask into the bias."""


def new_tokens_attention(model: ir.Model, packed: NDArray[np.float32], mask: NDArray[np.float32]) -> Array:
    """Returns the attention of the last tokens, after the first `PAST` have filled the KV cache.

    Args:
        model: an `attention_model` after a pass; inputs that it lacks are not fed.
        packed: float32[LENGTH, PACKED].
        mask: float32[LENGTH - PAST, LENGTH - PAST], the tree mask.
    """
    cached = run_tokens(model, packed[:PAST], POSITIONS[:PAST], np.zeros((PAST, PAST), dtype=np.float32), {})
    past = {name.replace("present", "past_key_values"): content for name, content in cached.items() if "present" in name}
    mixed: Array = run_tokens(model, packed[PAST:], POSITIONS[PAST:], mask, past)["mixed.0"][0]
    return mixed


def run_tokens(
    model: ir.Model, packed: NDArray[np.float32], positions: Sequence[int], mask: NDArray[np.float32], past: dict[str, Array]
) -> dict[str, Array]:
    num_past = len(next(iter(past.values()))[0, 0]) if past else 0
    feeds = {
        **first_tokens(packed),
        **past,
        "seqlens_k": np.array([num_past + len(packed) - 1], dtype=np.int32),
        "total_sequence_length": np.array(num_past + len(packed), dtype=np.int32),
        "position_ids": np.array([positions]),
        "past_length": np.array([num_past]),
        "tree_mask": mask[None, None],
    }
    names = {value.name for value in model.graph.inputs}
    return run(model, **{name: feed for name, feed in feeds.items() if name in names})


def tree() -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Returns the tree mask of the new tokens, and bool[LENGTH, LENGTH], which token attends to which."""
    visible = causal(LENGTH)
    visible[[5, 6], 4] = False  # the side branch does not attend to the trunk's second token
    mask = np.where(visible, 0, HIDDEN).astype(np.float32)[PAST:, PAST:]
    return np.tril(mask), visible


@pytest.mark.parametrize("rope", [False, True])
def test_tokens_attend_by_the_mask_and_their_positions(rope: bool) -> None:
    packed, (mask, visible) = drawn(LENGTH, PACKED), tree()
    done = TreeAttentionPass()(attention_model(rope=rope))
    assert done.modified
    expected = attention_reference(packed, visible, positions=POSITIONS, table=rope_table(8) if rope else None)
    np.testing.assert_allclose(new_tokens_attention(done.model, packed, mask), expected[PAST:], rtol=1e-4, atol=1e-5)


def test_an_open_mask_changes_nothing() -> None:
    packed, given = drawn(LENGTH, PACKED), attention_model()
    plain = run(given, **first_tokens(packed))["mixed.0"][0]
    done = TreeAttentionPass()(given).model
    everything = run_tokens(done, packed, range(LENGTH), np.zeros((LENGTH, LENGTH), dtype=np.float32), {})
    np.testing.assert_allclose(everything["mixed.0"][0], plain, rtol=1e-5, atol=1e-6)


def test_all_attentions_share_one_bias() -> None:
    done = TreeAttentionPass()(attention_model(3)).model
    assert kinds(done) == {"GroupQueryAttention": 3, **BIAS}
    inputs = {v.name: (v.dtype, v.shape) for v in done.graph.inputs}
    assert inputs["position_ids"] == (ir.DataType.INT64, ir.Shape(["batch", "sequence_len"]))
    assert inputs["tree_mask"] == (ir.DataType.FLOAT, ir.Shape(["batch", 1, "sequence_len", "sequence_len"]))
    assert inputs["past_length"] == (ir.DataType.INT64, ir.Shape(["batch"]))


def test_an_existing_input_of_positions_is_used() -> None:
    given = attention_model()
    positions = integers("position_ids", "batch", "sequence")
    used = named(ir.node("Neg", [positions]), "negative")
    given.graph.inputs.append(positions)
    given.graph.append(used)
    given.graph.outputs.append(typed(used.outputs[0], ir.DataType.INT64, ["batch", "sequence"]))
    done = TreeAttentionPass()(given).model
    assert [v.name for v in done.graph.inputs].count("position_ids") == 1
    assert only_node(done, "GroupQueryAttention").inputs[9] is positions


def test_an_attention_that_has_a_bias_of_its_own_is_refused() -> None:
    done = TreeAttentionPass()(attention_model()).model
    with pytest.raises(UnsupportedModelError, match="bias of its own"):
        TreeAttentionPass().call(done)


def test_a_draft_keeps_positions_and_loses_the_mask() -> None:
    packed, given = drawn(LENGTH, PACKED), attention_model()
    done = CausalOnlyPass()(TreeAttentionPass()(given).model)
    assert done.modified
    assert kinds(done.model) == {"GroupQueryAttention": 1}
    assert not {"tree_mask", "past_length"} & {v.name for v in done.model.graph.inputs}
    found = new_tokens_attention(done.model, packed, np.zeros((0, 0), dtype=np.float32))
    expected = attention_reference(packed, causal(LENGTH), positions=POSITIONS, table=rope_table(8))
    np.testing.assert_allclose(found, expected[PAST:], rtol=1e-4, atol=1e-5)


def test_a_graph_without_a_mask_keeps_its_inputs() -> None:
    given = attention_model()
    before = [v.name for v in given.graph.inputs]
    assert [v.name for v in CausalOnlyPass()(given).model.graph.inputs] == before
