"""The passes in their order: from the graph mobius builds to the pair that an artifact ships."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from ssruntime.artifact import SkipSet
from sstool.passes.chosen_positions import ChosenPositionsPass
from sstool.passes.direct_lengths import DirectLengthsPass
from sstool.passes.drop_functions import DropFunctionsPass
from sstool.passes.elide import ElidePass
from sstool.passes.fuse_silu import FuseSiluPass
from sstool.passes.rename_cache import RenameCachePass
from sstool.passes.tie_head import TieHeadPass
from sstool.passes.token_outputs import TokenOutputsPass
from sstool.passes.trim_rotary import TrimRotaryPass


def lower_verify(model: ir.Model, *, max_context: int) -> ir.Model:
    """Rewrites a decoder graph to the graph contract, in place, as fast as ONNX Runtime's own extended optimizations make it.

    Raises:
        UnsupportedModelError: if the graph is not one that the passes can take.
    """
    passes = ir.passes.Sequential(
        DirectLengthsPass(),
        RenameCachePass(),
        TrimRotaryPass(max_context),
        TieHeadPass(),
        FuseSiluPass(),
        ChosenPositionsPass(),
        TokenOutputsPass(),
        DropFunctionsPass(),
        common.NameFixPass(),
    )
    lowered = passes(model).model
    lowered.graph.name = "verify"  # mobius names it after the folder, which is nobody's business
    return lowered


def lower_draft(verify: ir.Model, skip: SkipSet) -> ir.Model:
    """Returns a draft: a copy of the verify graph, over the same tensors, without the sublayers of `skip`.

    Raises:
        UnsupportedModelError: if a sublayer cannot be taken out.
    """
    draft = ElidePass(skip)(verify.clone()).model
    draft.graph.name = "draft"
    return draft
