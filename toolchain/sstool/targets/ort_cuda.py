"""Target `ort-cuda`: ONNX Runtime on an NVIDIA GPU, for chains without a tree mask."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from sstool.graph.passes.tree_attention import CausalOnlyPass
from sstool.graph.sequential import run_passes
from sstool.targets.base import FIXED_CONTEXT, GraphTarget
from sstool.targets.passes.single_sequence import SingleSequencePass
from sstool.targets.passes.static_shapes import StaticShapesPass


def _finish(model: ir.Model, max_context: int) -> ir.Model:
    # On CUDA, a bias on the attention scores rules out every fast kernel.
    return run_passes(model, CausalOnlyPass(), SingleSequencePass(), StaticShapesPass(max_context))


ORT_CUDA: Final = GraphTarget(
    name="ort-cuda", dtypes=("fp16", "bf16"), finish=_finish, keeps_base=True, has_step=False, usual_context=FIXED_CONTEXT
)
