"""Gives the inputs and outputs of the KV cache the names and shapes of the graph contract."""

from __future__ import annotations

import re
from typing import Final

import onnx_ir as ir

from ssruntime import graph_io
from ssruntime.errors import UnsupportedModelError

_PAST: Final = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_PRESENT: Final = re.compile(r"present\.(\d+)\.(key|value)")
_CONTEXT_AXIS: Final = 2


class RenameKvCachePass(ir.passes.InPlacePass):
    """Names the KV cache's inputs `past.{layer}.key|value` and its outputs `present.{layer}.key|value`.

    Requires: inputs `past_key_values.{layer}.key|value` and outputs `present.{layer}.key|value` of shape
    `[batch, kv_heads, length, head_dim]`.
    Ensures: the names of the graph contract; every input has its output, and both have the shape
    `[batch, kv_heads, max_context, head_dim]`, because the runtime binds one buffer to both.
    Edits in place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Applies the pass. Raises UnsupportedModelError if an input has no output, or an output no input."""
        found: dict[str, set[tuple[str, str]]] = {"past": set(), "present": set()}
        for side, pattern, values in (("past", _PAST, model.graph.inputs), ("present", _PRESENT, model.graph.outputs)):
            for value in values:
                match = pattern.fullmatch(value.name or "")
                if match is None:
                    continue
                layer, kind = int(match[1]), match[2]
                name = graph_io.past_name if side == "past" else graph_io.present_name
                value.name = name(layer, kind)
                if value.shape is not None:
                    before, after = value.shape[:_CONTEXT_AXIS], value.shape[_CONTEXT_AXIS + 1 :]
                    value.shape = ir.Shape([*before, "max_context", *after])
                found[side].add((match[1], kind))
        if not found["past"] or found["past"] != found["present"]:
            raise UnsupportedModelError("the graph's KV cache inputs and outputs do not pair up", "this model cannot be exported yet")
        return ir.passes.PassResult(model, modified=True)
