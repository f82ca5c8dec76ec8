"""Target `tensorrt`: graphs of standard operators, for TensorRT and TensorRT-RTX."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from sstool.graph.sequential import run_passes
from sstool.targets.base import FIXED_CONTEXT, GraphTarget
from sstool.targets.passes.standard_activations import StandardActivationsPass
from sstool.targets.passes.standard_attention import StandardAttentionPass
from sstool.targets.passes.standard_norms import StandardNormsPass
from sstool.targets.passes.static_shapes import StaticShapesPass
from sstool.targets.passes.whitelist import TENSORRT_OPERATORS, WhitelistPass


def _finish(model: ir.Model, max_context: int) -> ir.Model:
    done = run_passes(
        model,
        StaticShapesPass(max_context),
        StandardNormsPass(),
        StandardActivationsPass(),
        StandardAttentionPass(max_context),
        StaticShapesPass(max_context),
        WhitelistPass("tensorrt", TENSORRT_OPERATORS),
    )
    for domain in [d for d in done.opset_imports if d not in ("", "ai.onnx")]:
        del done.opset_imports[domain]
    return done


TENSORRT: Final = GraphTarget(
    name="tensorrt", dtypes=("fp16", "bf16", "fp32"), finish=_finish, keeps_base=True, has_step=False, usual_context=FIXED_CONTEXT
)
