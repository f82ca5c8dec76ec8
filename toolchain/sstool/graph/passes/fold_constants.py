"""What does not depend on the input is computed once, at export, and lies in the weights."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

_MAX_NUMBERS: Final = 1 << 17
"""Numbers of a constant that is folded: norms' weights, never a matrix, which folding would hold in memory."""


class FoldConstantsPass(ir.passes.InPlacePass):
    """Folds small constant arithmetic (Gemma's norms add 1 to their weights) and turns Constant nodes into initializers.

    A draft leaves sublayers out node by node, so nodes that several sublayers share must not seem to belong to the first of them.

    Requires: nothing.
    Ensures: no Constant node; no node whose inputs are all small constants.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        optimizer.fold_constants(model, input_size_limit=_MAX_NUMBERS, output_size_limit=_MAX_NUMBERS)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)
