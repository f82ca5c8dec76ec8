"""Embeddings that are multiplied by the root of the model's width are multiplied by the root, not by its first two decimals."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import onnx_ir as ir

_ROUNDING: Final = 0.005 + 1e-6
"""mobius 0.1.0 rounds the root to two decimals, which moves a Gemma's logits by up to 5e-4 of their scale."""


class EmbeddingScalePass(ir.passes.InPlacePass):
    """Gives the product of a looked-up embedding and a rounded square root of the width the exact root.

    Requires: constants are initializers.
    Ensures: no looked-up row is multiplied by a number that lies within 0.005 of the root without being it.
    Edits in place.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self._root = math.sqrt(hidden_size)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        graph = model.graph
        modified = False
        for node in [n for n in graph if n.op_type == "Mul"]:
            for index, factor in enumerate(node.inputs):
                looked_up = node.inputs[1 - index]
                producer = None if looked_up is None else looked_up.producer()
                if producer is None or producer.op_type != "Gather" or factor is None or not self._is_rounded_root(factor):
                    continue
                node.replace_input_with(index, self._exact(graph))
                modified = True
        return ir.passes.PassResult(model, modified=modified)

    def _is_rounded_root(self, factor: ir.Value) -> bool:
        number = factor.const_value
        return number is not None and number.size == 1 and abs(float(number.numpy().reshape(())) - self._root) <= _ROUNDING

    def _exact(self, graph: ir.Graph) -> ir.Value:
        name = "sstool.embedding_scale"
        if name not in graph.initializers:
            tensor = ir.tensor(np.float32(self._root), name=name)
            graph.register_initializer(ir.Value(name=name, const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([])))
        return graph.initializers[name]
