"""Refuses graphs with operators or attributes that a target does not run as the ONNX standard says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import onnx_ir as ir

from ssruntime.errors import UnsupportedModelError

ANY: Final = frozenset({"*"})
_NONE: Final[frozenset[str]] = frozenset()

TENSORRT_OPERATORS: Final[Mapping[str, frozenset[str]]] = {
    # TensorRT's parser ignores other attributes and inputs of Attention in silence: `left_window_size`,
    # `nonpad_kv_seqlen` and the KV cache; it refuses `softcap`.
    "Attention": frozenset({"scale"}),
    "TensorScatter": frozenset({"axis", "mode"}),
    "RotaryEmbedding": frozenset({"interleaved", "rotary_embedding_dim"}),
    "RMSNormalization": frozenset({"axis", "epsilon"}),
    "LayerNormalization": frozenset({"axis", "epsilon"}),
    "Gelu": frozenset({"approximate"}),
    **dict.fromkeys(
        ("Cast", "Concat", "Gather", "GatherElements", "ReduceSum", "GatherND", "Softmax", "Split", "TopK", "Transpose", "Shape"), ANY
    ),
    **dict.fromkeys(
        ("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "LessOrEqual", "MatMul", "Max", "Min", "Mul", "Neg", "Range"), _NONE
    ),
    **dict.fromkeys(("Expand", "Identity", "Reshape", "Sigmoid", "Squeeze", "Sub", "Tanh", "TopK", "Transpose", "Unsqueeze", "Where"), ANY),
}
"""Operators and the attributes that each may have, for which builds and results were compared."""

_MAX_INPUTS: Final = {"Attention": 4}


class WhitelistPass(ir.passes.InPlacePass):
    """Checks every node against the operators and attributes that a target runs.

    Requires: nothing.
    Ensures: nothing; the graph is not changed.
    """

    def __init__(self, target: str, allowed: Mapping[str, frozenset[str]]) -> None:
        """Takes the target's name, and the attributes that each of its operators may have."""
        super().__init__()
        self._target = target
        self._allowed = allowed

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass. Raises UnsupportedModelError naming what the target does not run."""
        for node in model.graph:
            allowed = self._allowed.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if allowed is None:
                self._refuse(f"operator {node.op_type!r}")
            unknown = [] if allowed == ANY else [name for name in node.attributes if name not in (allowed or ())]
            if unknown:
                self._refuse(f"attribute {unknown[0]!r} of {node.op_type!r}")
            if sum(value is not None for value in node.inputs) > _MAX_INPUTS.get(node.op_type, len(node.inputs)):
                self._refuse(f"an input of {node.op_type!r}")
        return ir.passes.PassResult(model, modified=False)

    def _refuse(self, what: str) -> None:
        raise UnsupportedModelError(f"target {self._target} does not run {what} of this model", "export it for target ort-cpu")
