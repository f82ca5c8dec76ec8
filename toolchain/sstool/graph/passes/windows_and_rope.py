"""Sets each layer's sliding window and RoPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import onnx_ir as ir

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError
from sstool.checkpoint.attention_pattern import LayerAttention
from sstool.graph.attention_kernel import TABLE_INPUTS, applies_rope, attentions
from sstool.graph.sublayers import sublayer_of

_NO_WINDOW: Final = -1


class WindowsAndRopePass(ir.passes.InPlacePass):
    """Sets the sliding window of every GroupQueryAttention, and its RoPE or no RoPE, layer by layer.

    mobius may give every layer the same settings even where the model's layers differ.

    Requires: attention is GroupQueryAttention, and its nodes have their module paths; a layer that is to
    apply RoPE applies it already, with tables of the same width.
    Ensures: `local_window_size`, `do_rotary` and the tables are those of the layer, also where RoPE rotates a
    part of each head only; the tables are inputs
    `float[positions, pairs]`, because their length follows from the context that the runtime is loaded with.
    Edits in place.
    """

    def __init__(self, layers: Sequence[LayerAttention], pairs: Mapping[str, int]) -> None:
        """Takes the attention of each layer, and the number of pairs that each RoPE rotates by its name."""
        super().__init__()
        self._layers = layers
        self._pairs = pairs

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass. Raises UnsupportedModelError if the graph is not as required."""
        graph = model.graph
        tables = {name: _inputs(name, pairs) for name, pairs in self._pairs.items()}
        for node in attentions(graph):
            sublayer = sublayer_of(node)
            if sublayer is None or sublayer.layer >= len(self._layers):
                raise UnsupportedModelError(
                    f"attention {node.name!r} belongs to no layer of the config", "this model cannot be exported yet"
                )
            layer = self._layers[sublayer.layer]
            node.attributes.add(ir.AttrInt64("local_window_size", layer.window or _NO_WINDOW))
            # The kernel rotates what the tables cover, and knows no such attribute.
            node.attributes.pop("rotary_embedding_dim", None)
            if layer.rope is None:
                _disable_rope(node)
            else:
                _apply_rope(node, tables[layer.rope])
        graph.inputs.extend(value for pair in tables.values() for value in pair if value.uses())
        _drop_unused(graph)
        return ir.passes.PassResult(model, modified=True)


def _apply_rope(node: ir.Node, tables: tuple[ir.Value, ir.Value]) -> None:
    before = [node.inputs[i] if len(node.inputs) > i else None for i in TABLE_INPUTS]
    if not applies_rope(node) or any(v is None or v.shape is None for v in before):
        raise UnsupportedModelError(
            f"attention {node.name!r} has no rotary embedding, but its layer needs RoPE", "this model cannot be exported yet"
        )
    for index, old, new in zip(TABLE_INPUTS, before, tables, strict=True):
        assert old is not None and old.shape is not None and new.shape is not None  # noqa: PT018 - checked above
        if old.shape[-1] != new.shape[-1]:
            raise UnsupportedModelError(
                f"attention {node.name!r} applies RoPE to {old.shape[-1]} pairs of numbers, but its layer needs {new.shape[-1]}",
                "this model cannot be exported yet",
            )
        node.replace_input_with(index, new)


def _disable_rope(node: ir.Node) -> None:
    if applies_rope(node):
        node.attributes.add(ir.AttrInt64("do_rotary", 0))
    for index in TABLE_INPUTS:
        if index < len(node.inputs):
            node.replace_input_with(index, None)


def _inputs(name: str, pairs: int) -> tuple[ir.Value, ir.Value]:
    cosines, sines = graph_io.rope_names(name)
    return _table(cosines, pairs), _table(sines, pairs)


def _table(name: str, pairs: int) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["positions", pairs]))


def _drop_unused(graph: ir.Graph) -> None:
    for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del graph.initializers[name]
