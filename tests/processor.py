"""What the kernels of this processor guarantee, for tests that ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest

from ssruntime.backends.ort.integer_kernels import products_are_exact

HAS_EXACT_PRODUCTS: Final = products_are_exact()

needs_exact_products: Final = pytest.mark.skipif(
    not HAS_EXACT_PRODUCTS, reason="products of 8-bit weights saturate on this processor, which has no VNNI"
)


def require_equal_int4_bits(gate: Mapping[str, Any]) -> None:
    """Asserts that int4 passes of all query lengths have equal bits, on a processor with VNNI.

    Without VNNI, ONNX Runtime's kernel for a single row adds in another order than the one for two and more.
    """
    if HAS_EXACT_PRODUCTS:
        assert gate["bits"]["differing"] == 0
