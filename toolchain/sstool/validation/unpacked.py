"""Compares packed weights with the numbers that they stand for, by logits without rounded activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from ssruntime.backends.base import Backend
from ssruntime.errors import UnsupportedModelError
from sstool.graph.passes.block_products import FP32_ACTIVATIONS
from sstool.quantize.plan import Part, QuantizationPlan
from sstool.quantize.quality import engine_logits
from sstool.quantize.sensitivity import variant

_TOLERANCE: Final = 1e-4


@dataclass(frozen=True, kw_only=True)
class UnpackedReport:
    """How the logits of packed weights compare with those of the numbers that they stand for.

    Attributes:
        products: number of products with packed weights.
        max_relative: largest difference of a logit, as a fraction of the largest logit.
        tolerance: largest allowed `max_relative`; it is that of fp32 artifacts.
    """

    products: int
    max_relative: float
    tolerance: float = _TOLERANCE

    def to_json(self) -> dict[str, float | int]:
        """Returns the figures."""
        return dataclasses.asdict(self)


def measure_unpacked(
    backend: Backend, base: ir.Model, plan: QuantizationPlan, parts: Sequence[Part], text: Sequence[int]
) -> UnpackedReport:
    """Returns the comparison on one text, with activations in fp32 on both sides.

    Args:
        backend: open engines of the fp32 artifact.
        base: its base graph.
        plan: plan with the packed weights.
        parts: parts with packed weights.
        text: token ids.
    """
    with engine_logits(backend) as logits:
        expected = logits(text)
    found = variant(backend, base, plan, parts, accuracy_level=FP32_ACTIVATIONS)(text)
    largest = float(np.abs(found - expected).max() / np.abs(expected).max())
    return UnpackedReport(products=sum(len(group.weights) for group in plan.groups.values()), max_relative=largest)


def require_unpacked(report: UnpackedReport, what: str) -> None:
    """Raises UnsupportedModelError, with the figures, unless the logits agree."""
    if not report.max_relative <= report.tolerance:
        raise UnsupportedModelError(
            f"{what}: logits of the packed weights differ from those of their numbers by {report.max_relative:.1e} of the largest;"
            f" the limit is {report.tolerance:.0e}",
            "nothing was published; please report this",
        )
