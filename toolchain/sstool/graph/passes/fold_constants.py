"""Computes what does not depend on the input once, at export, and stores it with the weights."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

_MAX_NUMBERS: Final = 1 << 17
"""Most numbers in a folded constant: enough for a norm's weights. A matrix is not folded, to save memory."""


class FoldConstantsPass(ir.passes.InPlacePass):
    """Folds arithmetic on small constants, and turns Constant nodes into initializers.

    Gemma's norms, for example, add 1 to their weights. A Constant node that several sublayers share has the
    module path of one of them, so it would seem to belong to that sublayer alone, and a draft could not leave
    that sublayer out. An initializer belongs to no sublayer.

    Requires: nothing.
    Ensures: no Constant node is left, and no node whose inputs are all small constants.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass."""
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        optimizer.fold_constants(model, input_size_limit=_MAX_NUMBERS, output_size_limit=_MAX_NUMBERS)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)
