"""The targets of an export by name."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from sstool.targets.ort_cpu import ORT_CPU
from sstool.targets.ort_cuda import ORT_CUDA
from sstool.targets.passes.precision import PrecisionPass
from sstool.targets.tensorrt import TENSORRT

GRAPH_TARGETS: Final = {target.name: target for target in (ORT_CPU, ORT_CUDA, TENSORRT)}
DTYPES: Final = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def cast(model: ir.Model, dtype: str) -> ir.Model:
    """Returns a graph of the graph contract in a data type; it is changed in place."""
    return model if dtype == "fp32" else PrecisionPass(DTYPES[dtype])(model).model
