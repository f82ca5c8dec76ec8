"""The comparison of all quantized products of an engine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from ssruntime.backends.base import Backend
from ssruntime.errors import UnsupportedModelError
from sstool.validation.products.block import block_errors
from sstool.validation.products.integer import integer_errors

MAX_RELATIVE_ERROR: Final = 1e-5


@dataclass(frozen=True, kw_only=True)
class ProductsReport:
    """How an engine's quantized products compare with PyTorch's.

    Attributes:
        products: number of products.
        max_relative: largest error of a product, as a fraction of its largest result.
        worst: name of the product with the largest error.
        activations: number of compared integers that activations were quantized to before products of 8 bits.
        activations_differing: number of those that differ.
        tolerance: largest allowed `max_relative`.
    """

    products: int
    max_relative: float
    worst: str
    activations: int
    activations_differing: int
    tolerance: float = MAX_RELATIVE_ERROR

    @property
    def passed(self) -> bool:
        """Whether everything was compared, and is equal up to rounding."""
        return self.products > 0 and self.max_relative <= self.tolerance and self.activations_differing == 0

    def to_json(self) -> dict[str, float | int | str | bool]:
        """Returns the figures and the verdict."""
        return {**dataclasses.asdict(self), "passed": self.passed}


def measure_products(backend: Backend, base: ir.Model) -> ProductsReport:
    """Returns the comparison; all products run in the engine, over its own weights.

    Args:
        backend: open engines of a quantized artifact.
        base: its base graph.
    """
    integer = integer_errors(backend, base)
    errors = {**integer.errors, **block_errors(backend, base)}
    worst = max(errors, key=errors.__getitem__, default="none")
    return ProductsReport(
        products=len(errors),
        max_relative=errors.get(worst, 0.0),
        worst=worst,
        activations=integer.activations,
        activations_differing=integer.activations_differing,
    )


def require_products(report: ProductsReport, what: str) -> None:
    """Raises UnsupportedModelError, with the figures, if a report did not pass."""
    if not report.passed:
        raise UnsupportedModelError(
            f"{what}: the quantized products differ from PyTorch's by {report.max_relative:.1e} ({report.worst}), and"
            f" {report.activations_differing} of {report.activations} quantized activations; the limit is {report.tolerance:.0e}",
            "nothing was published; please report this",
        )
