"""Each attention gets its layer's window and RoPE, and computes the same as numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.checkpoint.attention_pattern import LayerAttention
from sstool.graph.passes.windows_and_rope import WindowsAndRopePass
from tests.toolchain.passes.small_graphs import (
    HEAD_DIM,
    PACKED,
    Array,
    attention_model,
    attention_reference,
    causal,
    drawn,
    first_tokens,
    rope_table,
    run,
)

LENGTH = 6
TABLES = {"near": rope_table(8, base=10.0), "far away": rope_table(8, base=1000.0)}
PAIRS = dict.fromkeys(TABLES, HEAD_DIM // 2)
LAYERS = [
    LayerAttention(window=None, rope="near"),
    LayerAttention(window=2, rope="near"),
    LayerAttention(window=3, rope="far away"),
    LayerAttention(window=None, rope=None),
    LayerAttention(window=2, rope=None),
]


def lowered(layers: Sequence[LayerAttention], *, rope: bool = True, num_layers: int | None = None) -> ir.Model:
    given = attention_model(len(layers) if num_layers is None else num_layers, rope=rope)
    return WindowsAndRopePass(layers, PAIRS).call(given).model


def tables_of(model: ir.Model) -> dict[str, Array]:
    """Returns the RoPE tables that a model takes, by input name."""
    names = {value.name for value in model.graph.inputs}
    found = {n: part for name, table in TABLES.items() for n, part in zip(graph_io.rope_names(name), table, strict=True)}
    return {name: part for name, part in found.items() if name in names}


def test_every_layer_has_its_own_window_and_table() -> None:
    packed = drawn(LENGTH, PACKED)
    done = lowered(LAYERS)
    found = run(done, **first_tokens(packed, len(LAYERS)), **tables_of(done))
    for n, layer in enumerate(LAYERS):
        table = None if layer.rope is None else TABLES[layer.rope]
        expected = attention_reference(packed, causal(LENGTH, layer.window), positions=range(LENGTH), table=table)
        np.testing.assert_allclose(found[f"mixed.{n}"][0], expected, rtol=1e-4, atol=1e-5)


def test_layers_share_tables_which_are_inputs() -> None:
    done = lowered(LAYERS)
    nodes = list(done.graph)
    assert nodes[0].inputs[7] is nodes[1].inputs[7]
    assert nodes[0].inputs[8] is nodes[1].inputs[8]
    assert nodes[2].inputs[7] is not nodes[0].inputs[7]
    assert set(tables_of(done)) == {f"rope.{name}.{part}" for name in ("near", "far_away") for part in ("cos", "sin")}
    assert not done.graph.initializers
    assert set(tables_of(lowered(LAYERS[:2]))) == {"rope.near.cos", "rope.near.sin"}
    assert [node.attributes["local_window_size"].as_int() for node in nodes] == [-1, 2, 3, -1, 2]
    assert [node.attributes["do_rotary"].as_int() for node in nodes] == [1, 1, 1, 0, 0]


def test_a_graph_without_rope_gets_no_table() -> None:
    done = lowered(LAYERS[3:], rope=False)
    assert not tables_of(done)
    packed = drawn(LENGTH, PACKED)
    found = run(done, **first_tokens(packed, 2))
    np.testing.assert_allclose(found["mixed.1"][0], attention_reference(packed, causal(LENGTH, 2)), rtol=1e-4, atol=1e-5)


def test_an_attention_outside_every_layer_is_refused() -> None:
    given = attention_model()
    given.graph[0].metadata_props.clear()
    for model in (given, attention_model(3)):
        with pytest.raises(UnsupportedModelError, match="belongs to no layer of the config"):
            WindowsAndRopePass(LAYERS[:2], PAIRS).call(model)


def test_a_layer_that_lacks_rope_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'attention\.0' has no rotary embedding"):
        lowered(LAYERS[:1], rope=False)


def test_a_table_of_another_width_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'attention\.0' applies RoPE to 8 pairs of numbers, but its layer needs 4"):
        WindowsAndRopePass(LAYERS[:1], {"near": 4}).call(attention_model())
