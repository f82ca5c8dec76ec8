"""Removes model-local function bodies where ONNX Runtime has kernels, because it would inline the bodies."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from ssruntime.errors import UnsupportedModelError

_KERNELS: Final = frozenset(
    {"SkipSimplifiedLayerNormalization", "SkipLayerNormalization", "GroupQueryAttention", "QuickGelu", "FusedMatMul"}
)


class DropFunctionsPass(ir.passes.InPlacePass):
    """Removes functions of `com.microsoft` operators that have CPU kernels, and functions that no node calls.

    Requires: no node calls any other model-local function.
    Ensures: the model holds no function; it imports the domains of the operators that it uses, and no others.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass. Raises UnsupportedModelError if a node calls a function without a kernel."""
        called = {(node.domain, node.op_type) for node in model.graph}
        for identifier in list(model.functions):
            domain, name, _ = identifier
            if (domain, name) in called and not (domain == "com.microsoft" and name in _KERNELS):
                raise UnsupportedModelError(
                    f"the graph calls {domain}.{name}, for which there is no kernel", "this model cannot be exported yet"
                )
            del model.functions[identifier]
        imports = model.graph.opset_imports
        used = {domain for domain, _ in called}
        if "com.microsoft" in used:
            imports.setdefault("com.microsoft", 1)
        for domain in [d for d in imports if d and d not in used]:
            del imports[domain]
        return ir.passes.PassResult(model, modified=True)
