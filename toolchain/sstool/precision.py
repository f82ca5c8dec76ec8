"""The data types of an export: how weights are stored, what is computed in, and how exact both are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ssruntime.artifact import BRANCH_MARGIN, QUANTIZED

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch


@dataclass(frozen=True, kw_only=True)
class Precision:
    """A value of `--dtype`.

    Attributes:
        name: its name, as in the manifest.
        compute: `fp32`, `fp16` or `bf16`: data type of the residual stream, the attention and the KV cache.
        rounding: largest difference of a logit between query lengths that counts as rounding, as a fraction
            of the largest logit. It is larger for quantized weights, where a rounding difference can make an
            activation round to another integer.
    """

    name: str
    compute: str
    rounding: float

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are integers with scales."""
        return self.name in QUANTIZED

    @property
    def ir_type(self) -> ir.DataType:
        """The graph's data type of the computation."""
        import onnx_ir as ir

        return {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[self.compute]

    @property
    def torch_type(self) -> torch.dtype:
        """PyTorch's data type of the computation."""
        import torch

        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.compute]


PRECISIONS: Final = {
    precision.name: precision
    for precision in (
        Precision(name="fp32", compute="fp32", rounding=BRANCH_MARGIN),
        Precision(name="fp16", compute="fp16", rounding=2e-2),
        Precision(name="bf16", compute="bf16", rounding=1e-1),
        Precision(name="int8", compute="fp32", rounding=5e-2),
        Precision(name="int4", compute="fp32", rounding=5e-2),
    )
}
"""The data types by name."""
