"""Target `ort-cpu`: ONNX Runtime on the processor runs the graphs as they are."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from sstool.targets.base import GraphTarget


def _finish(model: ir.Model, _max_context: int) -> ir.Model:
    return model


ORT_CPU: Final = GraphTarget(
    name="ort-cpu", dtypes=("fp32", "int8", "int4"), finish=_finish, keeps_base=False, has_step=True, usual_context=None
)
