"""A token that attends in two equal rows has the bits of a wider pass, and writes the same KV."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sstool.graph.passes.repeat_row import RepeatRowPass
from sstool.graph.passes.tree_attention import CausalOnlyPass, TreeAttentionPass
from tests.toolchain.passes.small_graphs import PACKED, Array, attention_model, drawn, first_tokens, kinds, run

PAST = 5
NUM_LAYERS = 2


def chain(*, rope: bool = True) -> ir.Model:
    """Returns a model of causal attentions with `position_ids`, as a step graph is made from."""
    model = attention_model(NUM_LAYERS, rope=rope, positions=PAST + 3)
    return CausalOnlyPass()(TreeAttentionPass()(model)).model


def after_past(model: ir.Model, packed: Array, *, padding: int = 0) -> dict[str, Array]:
    """Returns the outputs for the tokens after the first `PAST`, whose KV an earlier pass writes."""
    names = {value.name for value in model.graph.inputs}
    feeds = {**first_tokens(packed[:PAST], NUM_LAYERS), "position_ids": np.arange(PAST)[None]}
    cached = run(chain(rope="position_ids" in names), **{k: v for k, v in feeds.items() if k in names})
    total = len(packed) + padding
    feeds = {
        "packed": packed[None, PAST:],
        "position_ids": np.arange(PAST, len(packed))[None],
        "seqlens_k": np.array([total - 1], dtype=np.int32),
        "total_sequence_length": np.array(total, dtype=np.int32),
        **{name.replace("present", "past_key_values"): content for name, content in cached.items() if "present" in name},
    }
    return run(model, **{k: v for k, v in feeds.items() if k in names})


@pytest.mark.parametrize("rope", [True, False])
def test_one_token_has_the_bits_of_a_wider_pass(rope: bool) -> None:
    packed = drawn(PAST + 2, PACKED)
    step = RepeatRowPass()(chain(rope=rope)).model
    alone = after_past(step, packed[:-1], padding=1)
    wider = after_past(chain(rope=rope), packed)
    for layer in range(NUM_LAYERS):
        first = alone[f"mixed.{layer}.first"]
        assert first.shape[1] == 1
        np.testing.assert_array_equal(first[0, 0], wider[f"mixed.{layer}"][0, 0])
        for kind in ("key", "value"):
            name = f"present.{layer}.{kind}"
            np.testing.assert_array_equal(alone[name][:, :, : PAST + 1], wider[name][:, :, : PAST + 1])


def test_tokens_and_positions_are_repeated_once_for_all_layers() -> None:
    assert kinds(RepeatRowPass()(chain()).model) == {"GroupQueryAttention": NUM_LAYERS, "Concat": 2, "Split": NUM_LAYERS}
