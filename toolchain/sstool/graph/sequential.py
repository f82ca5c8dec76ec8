"""Runs passes one after another; their own errors come through."""

from __future__ import annotations

import onnx_ir as ir

from ssruntime.errors import SelfSpecError


def run_passes(model: ir.Model, *passes: ir.passes.PassBase) -> ir.Model:
    """Returns the model after the passes, which change it in place.

    Raises:
        UnsupportedModelError: if a pass cannot handle the graph.
    """
    try:
        return ir.passes.Sequential(*passes)(model).model
    except ir.passes.PassError as err:
        if isinstance(err.__cause__, SelfSpecError):
            raise err.__cause__ from None
        raise
