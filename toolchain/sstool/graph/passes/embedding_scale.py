"""Works around mobius 0.1.0, which rounds Gemma's embedding scale sqrt(hidden_size) to two decimals."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import onnx_ir as ir

from sstool.graph.passes.constants import constant

_ROUNDING: Final = 0.005 + 1e-6
"""Largest error of rounding to two decimals, with room for fp32."""


class EmbeddingScalePass(ir.passes.InPlacePass):
    """Replaces a looked-up embedding's factor by sqrt(hidden_size) if it is that root, but rounded.

    Requires: constants are initializers.
    Ensures: every factor of a looked-up embedding within 0.005 of sqrt(hidden_size) is that root in fp32.
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
                node.replace_input_with(index, constant(graph, "sstool.embedding_scale", np.array(self._root, dtype=np.float32)))
                modified = True
        return ir.passes.PassResult(model, modified=modified)

    def _is_rounded_root(self, factor: ir.Value) -> bool:
        number = factor.const_value
        return number is not None and number.size == 1 and abs(float(number.numpy().reshape(())) - self._root) <= _ROUNDING
