"""The targets of an export by name."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from sstool.precision import Precision
from sstool.targets.ort_cpu import ORT_CPU
from sstool.targets.ort_cuda import ORT_CUDA
from sstool.targets.passes.precision import PrecisionPass
from sstool.targets.tensorrt import TENSORRT

GRAPH_TARGETS: Final = {target.name: target for target in (ORT_CPU, ORT_CUDA, TENSORRT)}


def cast(model: ir.Model, precision: Precision) -> ir.Model:
    """Returns a graph of the graph contract that computes in a data type; it is changed in place."""
    return model if precision.compute == "fp32" else PrecisionPass(precision.ir_type)(model).model
